// The texts of the page in the chosen language.

import {ENGLISH} from './texts_en.js';
import {CHINESE} from './texts_zh.js';

let texts = ENGLISH;

/** Selects Chinese for `zh…`, else English; returns whether the language changed. */
export function setLanguage(code) {
  const chosen = code.startsWith('zh') ? CHINESE : ENGLISH;
  const isChange = chosen !== texts;
  texts = chosen;
  document.documentElement.lang = chosen === CHINESE ? 'zh-CN' : 'en';
  return isChange;
}

/** Returns a text with its placeholders filled in. */
export function say(name, values) {
  return texts[name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Returns the text for an error code. */
export function sayError(code) {
  return texts['error_' + code] || texts.error_unknown;
}

/** Formats a number of bytes. */
export function sayBytes(count) {
  const [unit, size] = count >= 2 ** 30 ? ['GiB', 2 ** 30] : ['MiB', 2 ** 20];
  return (count / size).toFixed(count >= 100 * size ? 0 : 1) + ' ' + unit;
}

/** Formats a time in seconds, rounded up. */
export function sayTime(seconds) {
  return seconds < 60
    ? say('seconds', {seconds: Math.ceil(seconds)})
    : say('minutes', {minutes: Math.ceil(seconds / 60)});
}

/** The tables, for a test that compares their keys. */
export const TABLES = {en: ENGLISH, zh: CHINESE};
