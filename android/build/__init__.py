"""The APK builder, without an Android SDK."""
