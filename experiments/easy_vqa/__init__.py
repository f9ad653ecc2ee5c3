"""easy-vqa, a small public benchmark, learned by the bundled model (`python -m experiments.easy_vqa.run`)."""
