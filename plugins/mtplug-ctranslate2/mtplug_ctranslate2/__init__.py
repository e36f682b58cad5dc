"""mtplug-ctranslate2: models for CTranslate2, and search with it."""
