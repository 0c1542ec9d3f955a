"""The phones that the app supports."""

from __future__ import annotations

from convert.bundle.targets import ABIS
from runtime.engine_client.phone_shell import PhoneInfo

MIN_SDK, TARGET_SDK = 26, 36  # Android 8 and 16, as API levels


def misfit(phone: PhoneInfo) -> str | None:
    """Returns why a phone cannot run the app; None if it can."""
    if phone.api < MIN_SDK:
        return f"has Android API {phone.api}; the app needs {MIN_SDK} (Android 8)"
    if not set(ABIS) & set(phone.abis):
        return f"runs {', '.join(phone.abis)}; the app is for {' and '.join(ABIS)}"
    return None
