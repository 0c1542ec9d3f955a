package org.minicpmv.sample

import android.content.Context
import java.io.File
import org.minicpmv.core.Answer
import org.minicpmv.core.MiniCpmV

// Each line that ends with `error` must not compile.
fun openNothing(file: File) = MiniCpmV.open(null, file, null) // error
fun openNowhere(context: Context) = MiniCpmV.open(context, null, null) // error
fun askNothing(model: MiniCpmV): Answer = model.chat(null, null, null) // error
fun askNull(model: MiniCpmV): Answer = model.chat(null, listOf(null), null) // error
fun take(answer: Answer?): String = answer.text // error
fun takeSafely(answer: Answer?): String = answer?.text ?: "none"
