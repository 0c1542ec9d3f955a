package org.minicpmv.sample

import android.content.Context
import android.graphics.Bitmap
import java.io.File
import org.minicpmv.core.Answer
import org.minicpmv.core.EngineException
import org.minicpmv.core.MiniCpmV

/** Asks about a picture, as an app in Kotlin does. */
fun ask(context: Context, weights: File, picture: Bitmap?, onPiece: (String) -> Unit): Answer {
    val listener = object : MiniCpmV.Listener {
        override fun onText(piece: String) = onPiece(piece)

        override fun onProgress(stage: String, done: Long, total: Long) = Unit
    }
    MiniCpmV.open(context, weights, null).use { model ->
        model.setGreedy(true)
        return model.chat(picture, listOf("What colour is the shape?"), listener)
    }
}

/** The parts of an answer are never null, so that they need no checks. */
fun describe(answer: Answer): Int = answer.text.length + answer.stop.length

fun explain(error: EngineException): String = "${error.code()}: ${error.message}"
