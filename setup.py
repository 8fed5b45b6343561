"""Map the top-level folders to `vidpress` and its sub-packages; all metadata is in pyproject.toml."""

from setuptools import find_packages, setup

# Not a folder `vidpress`, which would come before the installed package where Python runs from here.
FOLDERS = {
    "vidpress": "package",
    "vidpress.model": "model",
    "vidpress.transforms": "transforms",
    "vidpress.pipeline": "pipeline",
}

packages = list(FOLDERS)
for package, folder in FOLDERS.items():
    packages += [f"{package}.{name}" for name in find_packages(folder)]

setup(packages=packages, package_dir=FOLDERS)
