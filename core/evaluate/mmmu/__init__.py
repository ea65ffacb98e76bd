"""MMMU (Yue et al. 2023, arXiv:2311.16502): college questions about images, answered greedily."""
