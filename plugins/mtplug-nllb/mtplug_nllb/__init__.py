"""mtplug-nllb: NLLB-200 (NLLB Team 2022), M2M-100 (Fan et al. 2021) and mBART-50 (Tang et al. 2020) as runs of mtplug."""
