"""The app's manifest, and that of the variant with a server for other apps."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

MANIFEST, _ADDED = "AndroidManifest.xml", "api.xml"
_SPACE = "http://schemas.android.com/apk/res/android"


def app_manifest(app: Path, *, api: bool) -> str:
    """Returns the manifest.

    Args:
        app: the folder of the app.
        api: add what the server needs.
    """
    text = (app / MANIFEST).read_text("utf-8")
    if not api:
        return text
    ET.register_namespace("android", _SPACE)
    whole = ET.fromstring(text)
    application = whole.find("application")
    assert application is not None
    for element in ET.parse(app / _ADDED).getroot():
        if element.tag == "application":
            application.extend(element)
        else:
            whole.insert(0, element)
    return ET.tostring(whole, "unicode")
