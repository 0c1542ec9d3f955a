package org.minicpmv.sample;

import android.app.Activity;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.os.Bundle;
import android.widget.ImageView;
import android.widget.LinearLayout;
import android.widget.TextView;
import java.io.File;
import java.util.Collections;

import org.minicpmv.core.EngineException;
import org.minicpmv.core.MiniCpmV;

/**
 * Shows one picture and streams one answer about it.
 *
 * <p>It takes the picture `picture.png` and the weights from the app's external files.
 */
public final class SampleActivity extends Activity implements MiniCpmV.Listener {
  private static final String QUESTION = "What colour is the shape?";

  private TextView text;
  private volatile MiniCpmV model; // null until it is loaded
  private volatile boolean gone;

  @Override
  protected void onCreate(Bundle state) {
    super.onCreate(state);
    File folder = getExternalFilesDir(null);
    Bitmap picture = BitmapFactory.decodeFile(new File(folder, "picture.png").getPath());
    ImageView image = new ImageView(this);
    image.setImageBitmap(picture);
    text = new TextView(this);
    LinearLayout content = new LinearLayout(this);
    content.setOrientation(LinearLayout.VERTICAL);
    content.addView(image);
    content.addView(text);
    setContentView(content);
    new Thread(() -> answer(folder, picture), "answer").start();
  }

  /** Runs in the background. */
  private void answer(File folder, Bitmap picture) {
    try (MiniCpmV opened = MiniCpmV.open(this, folder, this)) {
      model = opened;
      opened.setGreedy(true); // the same answer every time
      if (!gone) {
        opened.chat(picture, Collections.singletonList(QUESTION), this);
      }
    } catch (EngineException e) {
      show(e.code() + ": " + e.getMessage());
    }
  }

  @Override
  public void onText(String piece) {
    show(piece);
  }

  @Override
  public void onProgress(String stage, long done, long total) {
    runOnUiThread(() -> setTitle(stage + " " + done + "/" + total));
  }

  private void show(String piece) {
    runOnUiThread(() -> text.append(piece));
  }

  @Override
  protected void onDestroy() {
    gone = true;
    MiniCpmV opened = model;
    if (opened != null) {
      opened.cancel();
    }
    super.onDestroy();
  }
}
