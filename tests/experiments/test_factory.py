import warnings

from dcjax import native
from experiments.method import factory
from experiments.settings.flags import Network


def test_a_cache_that_cannot_be_written_is_said_in_the_voice_of_the_run(monkeypatch):
    def build():
        warnings.warn("for this process alone", stacklevel=2)

    monkeypatch.setattr(native, "build", build)
    said = []
    assert factory.convolution(Network(), said.append) is native.conv_general_dilated
    assert said == ["for this process alone"]
