"""The page of the app on a PC: its host, as android/page/BRIDGE.md describes it, over HTTP."""
