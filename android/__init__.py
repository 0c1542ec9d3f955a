"""The app for phones: its Java and its page, the APK builder, sideloading."""
