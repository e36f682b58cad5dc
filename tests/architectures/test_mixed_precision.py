"""What enters several products is converted once, not once for each."""

import torch

from mtplug.architectures import Transformer, TransformerConfig, layers, transformer
from mtplug.plugins import host
from mtplug.registry import Selected
from mtplug.tasks.sized import SizedTask


def test_one_conversion_gives_what_many_give(monkeypatch):
    position = host().component("position_encodings", "sinusoidal")
    sizes = {
        "dim": 16,
        "ffn_dim": 32,
        "heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(**sizes, position=Selected(position, position.config())), SizedTask(20)
    )
    tokens, lengths = torch.randint(3, 20, (3, 5)), torch.tensor([5, 4, 2])
    seen: list[torch.dtype] = []
    model.decoder[0].cross.body.register_forward_pre_hook(
        lambda module, entered: seen.extend(x.dtype for x in entered)
    )

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            features = model(tokens, lengths, tokens)
        features.float().square().sum().backward()
        return features.detach(), model.encoder[0].attention.body.q.weight.grad.clone()

    once, gradient = run()
    assert seen == [torch.bfloat16] * 2  # queries' side and memory
    for module in (layers, transformer):
        monkeypatch.setattr(module, "for_products", lambda x: x)
    often, other = run()
    assert seen[2:] == [torch.float32] * 2
    assert once.equal(often)
    # Gradients of the conversions are summed before, not after rounding to fp32: 8 bits each.
    torch.testing.assert_close(gradient, other, rtol=0.05, atol=0.02 * float(other.abs().max()))
