"""The public face: what is documented exists, what exists is documented, nothing runs upwards."""

import inspect
import pathlib
import re
import subprocess
import sys

import dcjax
import dcjax.atomic
import dcjax.checkpoints

ROOT = pathlib.Path(dcjax.__file__).parent
PAGES = ROOT.parent / "docs" / "api"
REGEX = re.MULTILINE | re.DOTALL
MODULES = {
    "": dcjax,
    "samples.": dcjax.samples,
    "models.": dcjax.models,
    "native.": dcjax.native,
    "training.": dcjax.training,
    "method.": dcjax.method,
    "checkpoints.": dcjax.checkpoints,
    "atomic.": dcjax.atomic,
}


def public_names():
    for prefix, module in MODULES.items():
        for name, thing in vars(module).items():
            ours = getattr(thing, "__module__", "").startswith("dcjax")
            if not name.startswith("_") and ours and not inspect.ismodule(thing):
                yield prefix + name, thing


def test_everything_public_is_documented():
    bare = [name for name, thing in public_names() if not inspect.getdoc(thing)]
    assert not bare


def test_every_public_function_has_an_example():
    without = [
        name
        for name, thing in public_names()
        if inspect.isfunction(thing) and ">>>" not in (inspect.getdoc(thing) or "")
    ]
    assert not without


def test_what_the_readme_names_exists():
    text = (ROOT.parent / "README.md").read_text()
    for name in set(re.findall(r"dcjax\.((?:\w+\.)*\w+)", text)):
        thing = dcjax
        for part in name.split("."):
            thing = getattr(thing, part)


def test_every_public_name_is_on_one_page_of_the_site():
    listed = [
        f"{module}.{name}".removeprefix("dcjax.")
        for page in PAGES.glob("*.md")
        for module, names in re.findall(r"^```{names} (\S+)\n(.*?)^```", page.read_text(), REGEX)
        for name in names.split()
    ]
    assert sorted(listed) == sorted(name for name, _ in public_names())


def test_the_library_needs_only_its_own_dependencies():
    code = (
        "import sys, dcjax; "
        "print([m for m in ('tensorflow_datasets', 'tyro', 'sklearn', 'matplotlib', 'PIL', "
        "'orbax.checkpoint.v1', 'experiments') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
