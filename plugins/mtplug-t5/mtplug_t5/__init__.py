"""mtplug-t5: T5 (Raffel et al. 2020), mT5, ByT5 (Xue et al. 2021, 2022), Flan-T5 and MADLAD-400 as runs of mtplug."""
