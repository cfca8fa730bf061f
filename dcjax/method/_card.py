"""The model card of a saved model: what it is, how it was trained, how good it is."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

TITLES = {
    "subnets": "sub-networks",
    "composed": "composed",
    "finetuned": "fine-tuned",
    "baseline": "baseline, from scratch",
}


def card(config: Mapping[str, Any]) -> str:
    """Return the card, Markdown with the front matter that model hubs read."""
    return "\n".join([*_front(config), "", *_body(config)]) + "\n"


def _front(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the front matter; JSON's strings are YAML's, too."""
    data, accuracy = config["about"].get("data", "own data"), config["weights"]["finetuned"]
    name = json.dumps(f"{config['network']['class'].rpartition('.')[2]} on {data}")
    yield "---"
    yield "library_name: dcjax"
    yield "pipeline_tag: image-classification"
    yield "tags: [jax, flax, dcjax, image-classification]"
    yield "metrics: [accuracy]"
    if (value := accuracy.get("accuracy")) is not None:
        yield "model-index:"
        yield f"- name: {name}"
        yield "  results:"
        yield "  - task: {type: image-classification}"
        yield f"    dataset: {{name: {json.dumps(data)}, type: {json.dumps(data)}}}"
        yield f"    metrics: [{{type: accuracy, value: {value}, name: test accuracy}}]"
    yield "---"


def _body(config: Mapping[str, Any]) -> Iterator[str]:
    about, images = config["about"], config["images"]
    shape = ", ".join(map(str, images["shape"]))
    yield f"# {config['network']['class'].rpartition('.')[2]} on {about.get('data', 'own data')}"
    yield ""
    yield (
        f"{config['subnets']} narrow sub-networks were trained side by side without communication, "
        "composed into one network and fine-tuned, by [dcjax](https://github.com/dcjax/dcjax)."
    )
    yield ""
    yield (
        f"The network has {config['parameters']:,} parameters, a sub-network "
        f"{config['subnet_parameters']:,}."
    )
    yield ""
    yield "```python"
    yield "import dcjax"
    yield ""
    yield 'model = dcjax.load_run("this folder")'
    yield f"model.predict(images)  # {images['dtype']} (N, {shape}): probabilities (N, classes)"
    yield "```"
    yield ""
    yield "| network | weights | test accuracy | test loss |"
    yield "| --- | --- | --- | --- |"
    for which, entry in config["weights"].items():
        cells = (
            _list(entry.get(key), form) for key, form in (("accuracy", _percent), ("cost", _4))
        )
        yield f"| {TITLES[which]} | `{entry['file']}` | {' | '.join(cells)} |"
    history = about.get("history", {})
    if composed := history.get("composed"):
        yield ""
        yield (
            "The sub-networks' logits bound the composed network before fine-tuning: accuracy "
            f"{_percent(composed['accuracy_lower'])} ≤ {_percent(composed['accuracy'])} ≤ "
            f"{_percent(composed['accuracy_upper'])}, loss {_4(composed['cost_lower'])} ≤ "
            f"{_4(composed['cost'])} ≤ {_4(composed['cost_upper'])}. The largest relative error of "
            f"a composed feature map is {_short(composed['feature_error'])}."
        )
    yield from _accounts(history)
    for title, values in (
        ("Network", config["network"]["settings"] or {"class": config["network"]["class"]}),
        ("Data", _data(config)),
        ("Settings", about.get("settings", {})),
        ("Versions", config["versions"]),
    ):
        yield ""
        yield f"## {title}"
        yield ""
        yield "| | |"
        yield "| --- | --- |"
        yield from (
            f"| {key} | {str(value).replace('|', chr(92) + '|')} |" for key, value in values.items()
        )


def _accounts(history: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what the stages took."""
    stages = {name: stage for name, stage in history.items() if "epochs" in stage}
    if stages:
        yield ""
        yield "| stage | epochs | seconds | device seconds |"
        yield "| --- | --- | --- | --- |"
        for name, stage in stages.items():
            seconds = f"{stage['seconds']:.1f} | {stage['device_seconds']:.1f}"
            yield f"| {name} | {stage['epochs']} | {seconds} |"


def _data(config: Mapping[str, Any]) -> dict[str, Any]:
    about, images = config["about"], config["images"]
    counts = {key: about[key] for key in ("train_images", "test_images") if key in about}
    return {
        **counts,
        "image": f"{images['dtype']} {tuple(images['shape'])}",
        "normalisation": images["normalise"],
        **{name: images[name] for name in ("mean", "std") if images[name] is not None},
        "classes": ", ".join(config["classes"] or ()) or "numbers from 0 on",
    }


def _list(value: Any, form: Any) -> str:
    return ", ".join(map(form, value)) if isinstance(value, list) else form(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _4(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1e}"
