"""The functions of shiqrun for Python and notebooks; `import shiqrun` offers them by the same names."""
