package org.minicpmv.app;

import android.app.Activity;
import android.content.res.Configuration;
import android.graphics.Color;
import android.graphics.Insets;
import android.graphics.drawable.ColorDrawable;
import android.os.Build;
import android.view.View;
import android.view.Window;
import android.view.WindowInsets;
import android.view.WindowInsetsController;
import android.view.WindowManager;
import org.minicpmv.core.Assistant;
import org.minicpmv.core.Json;

/**
 * What surrounds the page: the system's bars, the camera's cut-out, the keyboard.
 *
 * <p>Since Android 11 the page fills the window, as newer versions demand: it is drawn behind the
 * bars, and gets their widths with its state. Web views report them too, but each version others.
 * The keyboard makes the page smaller.
 */
final class WindowEdges implements View.OnApplyWindowInsetsListener {
  private final Assistant assistant;
  private final float density;

  private WindowEdges(Assistant assistant, float density) {
    this.assistant = assistant;
    this.density = density;
  }

  /** Lets the page fill the window; called once the window has its content. */
  static void fill(Activity activity, Assistant assistant) {
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
      Window window = activity.getWindow();
      window.setDecorFitsSystemWindows(false);
      window.setStatusBarColor(Color.TRANSPARENT);
      window.setNavigationBarColor(Color.TRANSPARENT);
      window.setNavigationBarContrastEnforced(false); // the page has the same colour there
      WindowManager.LayoutParams attributes = window.getAttributes();
      attributes.layoutInDisplayCutoutMode =
          WindowManager.LayoutParams.LAYOUT_IN_DISPLAY_CUTOUT_MODE_ALWAYS;
      window.setAttributes(attributes);
      float density = activity.getResources().getDisplayMetrics().density;
      View content = activity.findViewById(android.R.id.content);
      content.setOnApplyWindowInsetsListener(new WindowEdges(assistant, density));
    }
  }

  /** Gives window and bars the colours of the page's theme, which need not be the system's. */
  static void setDark(Activity activity, boolean isDark) {
    Configuration theme = new Configuration();
    theme.uiMode = isDark ? Configuration.UI_MODE_NIGHT_YES : Configuration.UI_MODE_NIGHT_NO;
    int color = activity.createConfigurationContext(theme).getColor(R.color.background);
    Window window = activity.getWindow();
    window.setBackgroundDrawable(new ColorDrawable(color));
    if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.R) {
      int light =
          WindowInsetsController.APPEARANCE_LIGHT_STATUS_BARS
              | WindowInsetsController.APPEARANCE_LIGHT_NAVIGATION_BARS;
      window.getInsetsController().setSystemBarsAppearance(isDark ? 0 : light, light);
      return;
    }
    window.setStatusBarColor(color);
    int light = View.SYSTEM_UI_FLAG_LIGHT_STATUS_BAR;
    if (Build.VERSION.SDK_INT > Build.VERSION_CODES.O) { // 8.0 has dark navigation bars only
      window.setNavigationBarColor(color);
      light |= View.SYSTEM_UI_FLAG_LIGHT_NAVIGATION_BAR;
    }
    View decor = window.getDecorView();
    int others = decor.getSystemUiVisibility() & ~light;
    decor.setSystemUiVisibility(isDark ? others : others | light);
  }

  @Override
  public WindowInsets onApplyWindowInsets(View content, WindowInsets insets) {
    if (Build.VERSION.SDK_INT < Build.VERSION_CODES.R) {
      return insets;
    }
    int keyboard = insets.getInsets(WindowInsets.Type.ime()).bottom;
    content.setPadding(0, 0, 0, keyboard);
    Insets bars =
        insets.getInsets(WindowInsets.Type.systemBars() | WindowInsets.Type.displayCutout());
    int below = keyboard > 0 ? 0 : bars.bottom; // the keyboard lies over the lower bar
    assistant.setInsets(
        Json.object(
            "top", pixels(bars.top), "right", pixels(bars.right),
            "bottom", pixels(below), "left", pixels(bars.left)));
    return WindowInsets.CONSUMED; // else the web view reports them to the page a second time
  }

  /** Converts the screen's pixels to the page's. */
  private int pixels(int size) {
    return (int) Math.ceil(size / density);
  }
}
