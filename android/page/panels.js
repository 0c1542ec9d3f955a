// The dialogs over the chat. Each draws itself again only if what it shows has changed.

import * as about from './about.js';
import * as api from './api.js';
import * as checks from './checks.js';
import {fill, find} from './dom.js';
import * as history from './history.js';
import * as settings from './settings.js';
import * as shared from './shared.js';
import {say} from './texts.js';

// Each returns what a panel shows: `key` identifies it, `make` returns its elements.
const CONTENTS = {
  history: history.content,
  settings: settings.content,
  check: checks.checkContent,
  bench: checks.benchContent,
  api: api.content,
  about: about.content,
  shared: shared.content,
};
const WIDE = '(min-width: 62rem)'; // room for a side bar with the chats

let state = null; // the latest from the host
const drawn = {}; // the key of what each panel shows

/** Sets up the panels; `send` sends commands to the host. */
export function start(send) {
  history.start(send, {closeAll, redraw});
  settings.start(send, {open});
  checks.start(send, {redraw});
  api.start(send);
  shared.start(send, {redraw, open, closeAll});
  for (const name of Object.keys(CONTENTS)) {
    find(name).querySelector('.close').addEventListener('click', () => find(name).close());
    find(name).addEventListener('click', (event) => { // a tap beside it
      if (event.target === find(name)) {
        find(name).close();
      }
    });
  }
  const isWide = window.matchMedia(WIDE);
  isWide.addListener(() => placeHistory(isWide.matches));
  placeHistory(isWide.matches);
}

/** Opens a panel and closes the others. */
export function open(name) {
  closeAll();
  draw(name);
  find(name).showModal();
}

/** Whether a dialog is open. */
export function isOpen() {
  return document.querySelector('dialog[open]') !== null;
}

/** Closes all dialogs; returns whether one was open. */
export function closeAll() {
  const opened = Array.from(document.querySelectorAll('dialog')).filter((dialog) => dialog.open);
  opened.forEach((dialog) => dialog.close());
  return opened.length > 0;
}

/** Updates what is shown with the latest state. */
export function update(newState) {
  state = newState;
  Object.keys(CONTENTS).filter(isShown).forEach(draw);
}

function redraw(name) {
  if (isShown(name)) {
    draw(name);
  }
}

function isShown(name) {
  return find(name).open || (name === 'history' && !find('side').hidden);
}

/** On a wide screen the chats stand beside the chat, else in a dialog. */
function placeHistory(isWide) {
  find('history').close();
  find('side').hidden = !isWide;
  find('open-history').hidden = isWide;
  (isWide ? find('side') : find('history')).append(find('history-box'));
  redraw('history');
}

function draw(name) {
  const language = document.documentElement.lang;
  find(name + '-title').textContent = say(name);
  find(name).querySelector('.close').setAttribute('aria-label', say('close'));
  if (state === null) {
    return;
  }
  const {key, make} = CONTENTS[name](state);
  const newKey = language + JSON.stringify(key);
  const isTyped = document.activeElement.matches('input[type="number"]')
    && find(name).contains(document.activeElement) && (drawn[name] || '').startsWith(language);
  if (newKey === drawn[name] || isTyped) {
    return;
  }
  drawn[name] = newKey;
  const focused = document.activeElement.id;
  const scrolled = find(name).scrollTop;
  fill(find(name + '-body'), ...make());
  find(name).scrollTop = scrolled;
  if (focused && find(focused) !== null && find(name + '-body').contains(find(focused))) {
    find(focused).focus();
  }
}
