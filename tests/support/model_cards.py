"""What the hub refuses in a model card: front matter that is no YAML, or a license that it has no identifier for."""

import yaml

LICENSES = {"apache-2.0", "mit", "llama2", "llama3", "other", "cc-by-4.0", "cc-by-nc-4.0", "cc0-1.0", "unknown"}
"""Some of the hub's identifiers."""


def front_matter(card: str) -> dict[str, object]:
    """Return the front matter of a card."""
    assert card.startswith("---\n")
    value = yaml.safe_load(card[4:].partition("\n---\n")[0])
    assert isinstance(value, dict)
    return value


def card_faults(card: str) -> list[str]:
    """Return what is wrong with a card."""
    try:
        about = front_matter(card)
    except (AssertionError, yaml.YAMLError) as error:
        return [f"the metadata cannot be read: {error}"]
    faults = [] if about.get("license") in LICENSES else [f'"license" must be one of {sorted(LICENSES)}']
    if about.get("license") == "other" and not about.get("license_name"):
        faults.append('"license_name" is needed with "license: other"')
    for key in ("tags", "base_model", "datasets"):
        values = about.get(key, [])
        if not all(isinstance(one, str) for one in (values if isinstance(values, list) else [values])):
            faults.append(f'"{key}" must be text')
    return faults
