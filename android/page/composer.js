// The box for the next question: its text, its picture, and the buttons beside it.

import {announce, find} from './dom.js';
import {say} from './texts.js';

const DRAFT_MS = 400; // after the last key, the host keeps the text

let send; // to the host
let onAsk; // takes a question: its text and picture
let state = null; // the latest from the host
let picture = null; // chosen for the next question
let pending = null; // a question that the host has not accepted yet
let isTouched = false; // the user has begun here, so a draft from before comes too late
let keeping = 0; // a timer

/** Sets up the box. */
export function start(sender, asker) {
  send = sender;
  onAsk = asker;
  find('camera').addEventListener('click', () => send('picture', {camera: true}));
  find('gallery').addEventListener('click', () => send('picture', {camera: false}));
  find('dictate').addEventListener('click', () => send('dictate'));
  find('stop').addEventListener('click', () => send('stop'));
  find('attached').querySelector('button').addEventListener('click', () => {
    picture = null;
    send('drop');
    draw();
    find('question').focus();
  });
  find('question').addEventListener('input', onInput);
  find('question').addEventListener('keydown', onKey);
  find('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    ask();
  });
  document.addEventListener('visibilitychange', () => document.hidden && keeping && keep());
}

/** Applies the host's latest state. */
export function update(newState) {
  state = newState;
  draw();
}

/** Puts an example into the box, and asks for a picture if there is none. */
export function useExample(text) {
  find('question').value = text;
  onInput();
  find('question').focus();
  if (picture === null) {
    send('picture', {camera: false});
  }
}

/** The host has accepted the question. */
export function accepted() {
  pending = null;
}

/** The host has refused something: a question that waits is given back to the user. */
export function refused() {
  if (pending !== null && find('question').value === '') {
    find('question').value = pending;
    onInput();
  }
  pending = null;
}

/** Shows the picture that the user chose. */
export function setPicture(event) {
  const isNew = picture === null || picture.id !== event.picture.id;
  picture = event.picture;
  draw();
  if (isNew) {
    find('question').focus();
  }
}

/** Restores what was being typed before the page or the host ended. */
export function restore(event) {
  if (!isTouched && find('question').value === '') {
    insert(event);
  }
}

/** Inserts a text at the cursor. */
export function insert(event) {
  const box = find('question');
  const [before, after] = [box.value.slice(0, box.selectionStart), box.value.slice(box.selectionEnd)];
  const space = /\w$/.test(before) && /^\w/.test(event.text) ? ' ' : '';
  box.value = before + space + event.text + after;
  const end = box.value.length - after.length;
  box.setSelectionRange(end, end);
  onInput();
}

/** Sets the labels. */
export function label() {
  for (const id of ['camera', 'gallery', 'dictate', 'send', 'stop']) {
    find(id).setAttribute('aria-label', say(id));
    find(id).title = say(id);
  }
  find('attached').querySelector('button').setAttribute('aria-label', say('removePicture'));
}

function onInput() {
  isTouched = true;
  grow();
  draw();
  clearTimeout(keeping);
  keeping = setTimeout(keep, DRAFT_MS);
}

function keep() {
  clearTimeout(keeping);
  keeping = 0;
  send('draft', {text: find('question').value});
}

/** Enter sends on a hardware keyboard, but not while an input method is composing. */
function onKey(event) {
  const isTouch = window.matchMedia('(pointer: coarse)').matches;
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !isTouch) {
    event.preventDefault();
    ask();
  }
}

function ask() {
  const text = find('question').value.trim();
  if (text === '' || find('send').disabled || find('send').hidden) {
    return;
  }
  pending = text;
  find('question').value = '';
  clearTimeout(keeping);
  keeping = 0;
  const asked = picture;
  picture = null;
  onAsk(text, asked === null ? undefined : asked.id);
  announce(say('working'));
  grow();
  draw();
}

function draw() {
  const isAnswering = Boolean(state && state.answering);
  const sees = !(state && state.model && state.model.image_tokens === 0);
  const can = (what) => state !== null && state.can.includes(what);
  const box = find('question');
  box.placeholder = say(picture ? 'questionPicture' : 'question');
  box.setAttribute('aria-label', box.placeholder);
  find('send').hidden = isAnswering;
  find('stop').hidden = !isAnswering;
  find('send').disabled = box.value.trim() === '' || !state || Boolean(state.problem);
  find('camera').hidden = !sees || !can('camera');
  find('gallery').hidden = !sees;
  find('dictate').hidden = !can('dictate');
  find('attached').hidden = picture === null;
  if (picture !== null) {
    find('attached').querySelector('img').src = 'picture/' + picture.id;
    find('attached').querySelector('span').textContent = say('pictureOf', picture);
  }
}

function grow() {
  const box = find('question');
  box.style.height = 'auto';
  box.style.height = box.scrollHeight + 'px';
}
