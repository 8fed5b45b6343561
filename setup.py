"""Map the top-level folders to sub-packages of `vidpress`; all metadata is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {"vidpress.model": "model", "vidpress.transforms": "transforms", "vidpress.pipeline": "pipeline"}

packages = list(FOLDERS)
for package, folder in FOLDERS.items():
    packages += [f"{package}.{name}" for name in find_packages(folder)]

setup(packages=packages, package_dir=FOLDERS)
