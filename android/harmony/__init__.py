"""The app for HarmonyOS NEXT: a project for DevEco Studio, with the engine as a library."""
