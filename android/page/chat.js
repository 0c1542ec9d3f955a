// The chat on the screen. Only what has changed is drawn, so that the place of reading, a text
// selection and the keyboard's focus stay.

import {announce, button, find, make} from './dom.js';
import {say} from './texts.js';
import {AnswerView, copyButton, editForm, questionElement} from './turns.js';
import * as viewer from './viewer.js';

const NEAR_END = 80; // pixels; closer to the end than this, the view scrolls with the answer
const FIRST = 12; // turns drawn at once when a chat opens: about what a screen has
const CHUNK = 8; // turns drawn in each frame after that

let send; // to the host
let options = {showsSpeed: false, language: '', canSpeak: false, isSpeaking: false};
let chat = null; // the chat shown; null: a new chat
let drawn = []; // what is drawn of each turn: `key`, `element`; undefined: nothing yet
let live = null; // the answer being streamed: an AnswerView; null: none
let streamed = ''; // its text, of which the next frame draws what is new
let isDue = false; // a frame will draw it
let answering = false;
let opened = null; // the turn whose actions the user opened; null: none
let spoken = null; // the text being read aloud
let follows = true; // the end of the chat is visible
let kept = -1; // where `keepEnd` left the view; there, the user has not scrolled
let filling = 0; // the frame that draws earlier turns

/** Sets up the chat; `sender` sends commands to the host. */
export function start(sender) {
  send = sender;
  viewer.start();
  const main = find('main');
  main.addEventListener('scroll', () => {
    // The event of `keepEnd` itself may come after a picture has moved the end away.
    follows = main.scrollTop === kept || isNearEnd();
  });
  new ResizeObserver(keepEnd).observe(main); // rotated, or the keyboard or a message appeared
  new ResizeObserver(keepEnd).observe(find('turns')); // a picture was loaded
  find('turns').addEventListener('click', onTap);
  find('turns').addEventListener('keydown', onKey);
}

/** Returns the id of the chat shown; undefined for a new one. */
export function shownChat() {
  return chat === null ? undefined : chat.id;
}

/** Returns the picture's element that the answer in progress is about; null if none is drawn. */
export function askedPicture() {
  const turns = turnsShown();
  const latest = turns.map((turn) => Boolean(turn.picture)).lastIndexOf(true);
  return answering && drawn[latest] ? drawn[latest].element.querySelector('.picture') : null;
}

/** Returns whether the model sees a picture with the chat's last question. */
export function hasPicture() {
  return turnsShown().some((turn) => turn.picture);
}

/** Applies settings and language. */
export function setOptions(changed) {
  const before = JSON.stringify(options);
  options = changed;
  if (!changed.isSpeaking) {
    spoken = null;
  }
  if (JSON.stringify(options) !== before) {
    draw();
  }
}

/** Shows a chat from the host. */
export function showChat(newChat, partial) {
  const before = chat;
  const isSame = before !== null && newChat !== undefined && before.id === newChat.id;
  chat = newChat === undefined ? null : newChat;
  answering = partial !== undefined;
  const turns = turnsShown();
  const isAsked = answering && (!isSame || turns.length !== before.turns.length);
  const isAnswered = isSame && !answering && turns.length > before.turns.length;
  if (!isSame) {
    clear();
  }
  if (answering) {
    stream(partial);
  }
  draw();
  if (!isSame || isAsked) {
    follows = true;
    keepEnd();
  }
  if (isAnswered) {
    announce(say('answered', {text: turns[turns.length - 1].text}));
  }
}

/**
 * Appends a piece of the streamed answer that starts at an offset. Text already shown is skipped.
 * Returns false if text before the piece is missing.
 */
export function addText(id, at, text) {
  if (live === null || id !== shownChat()) {
    return true;
  }
  if (at > streamed.length) {
    return false;
  }
  streamed += text.slice(streamed.length - at);
  if (!isDue) {
    isDue = true;
    requestAnimationFrame(drawStreamed);
  }
  return true;
}

/** Closes what the user opened in the chat; returns whether there was anything. */
export function closeAll() {
  const wasOpen = isOpen();
  closeForm();
  setOpened(null);
  return wasOpen;
}

/** Whether the user opened something in the chat. */
export function isOpen() {
  return opened !== null || find('turns').querySelector('form') !== null;
}

function turnsShown() {
  return chat === null ? [] : chat.turns;
}

function clear() {
  cancelAnimationFrame(filling);
  for (const entry of drawn) {
    if (entry) {
      entry.element.remove();
    }
  }
  drawn = [];
  opened = null;
  endStream();
}

/** Draws the turns that differ from what is on the screen. */
function draw() {
  const turns = turnsShown();
  while (drawn.length > turns.length) {
    const entry = drawn.pop();
    if (entry) {
      forget(entry.element);
    }
  }
  const first = Math.max(0, turns.length - FIRST);
  for (let i = drawn.findIndex((entry) => entry) < 0 ? first : 0; i < turns.length; i++) {
    if (i >= first || drawn[i]) {
      drawTurn(turns, i);
    }
  }
  if (!answering) {
    endStream();
  }
  drawActions();
  cancelAnimationFrame(filling);
  filling = requestAnimationFrame(() => { // after the frame that shows the end
    filling = requestAnimationFrame(fillIn);
  });
}

/** Draws the next earlier turns; the browser keeps what is visible in its place. */
function fillIn() {
  const turns = turnsShown();
  let last = drawn.findIndex((entry) => entry) - 1;
  const height = find('main').scrollHeight;
  const isAtTop = find('main').scrollTop === 0; // there, the browser does not
  for (let count = 0; last >= 0 && count < CHUNK; last--, count++) {
    drawTurn(turns, last);
  }
  if (isAtTop) {
    find('main').scrollTop = find('main').scrollHeight - height;
  }
  keepEnd();
  if (last >= 0) {
    filling = requestAnimationFrame(fillIn);
  }
}

function drawTurn(turns, i) {
  const turn = turns[i];
  const isUser = turn.role === 'user';
  const notes = {
    isLater: isUser && Boolean(turn.picture) && turns.slice(0, i).some((earlier) => earlier.picture),
    isUnanswered: isUser && i === turns.length - 1 && !answering,
  };
  const key = JSON.stringify([turn, notes, options.language, !isUser && options.showsSpeed]);
  if (drawn[i] && drawn[i].key === key) {
    return;
  }
  const element = isUser
    ? questionElement(turn, notes, (picture) => viewer.show(picture))
    : answerElement(turn, i === turns.length - 1 && !drawn[i] && !answering);
  if (drawn[i]) {
    forget(drawn[i].element, element);
  } else if (element.parentNode === null) {
    const next = drawn.slice(i + 1).find((entry) => entry);
    const before = next ? next.element : live !== null ? live.element : null;
    find('turns').insertBefore(element, before);
  }
  drawn[i] = {key, element};
}

/** Creates an answer's element, or completes the one that was streamed, if it `isNew`. */
function answerElement(turn, isNew) {
  let view = live;
  if (isNew && view !== null && turn.text.startsWith(view.text)) {
    view.body.classList.remove('waiting');
    live = null;
  } else {
    view = new AnswerView(send);
  }
  view.update(turn.text);
  view.complete(turn, options.showsSpeed);
  return view.element;
}

/** Removes a turn's element, or replaces it. */
function forget(element, replacement) {
  if (opened === element) {
    opened = null;
  }
  if (replacement) {
    element.replaceWith(replacement);
  } else {
    element.remove();
  }
}

function stream(text) {
  if (live === null || !text.startsWith(live.text)) {
    endStream();
    live = new AnswerView(send);
    live.body.classList.add('waiting');
    find('turns').append(live.element);
  }
  streamed = text.length > streamed.length ? text : streamed;
  drawStreamed();
}

function drawStreamed() {
  isDue = false;
  if (live !== null) {
    live.update(streamed);
    keepEnd();
  }
}

function endStream() {
  if (live !== null) {
    live.element.remove();
    live = null;
  }
  streamed = '';
}

/** Shows what can be done with the last turn, and with the one that the user tapped on. */
function drawActions() {
  const turns = turnsShown();
  const last = answering || turns.length === 0 ? null : drawn[turns.length - 1].element;
  drawn.forEach((entry, i) => {
    const isShown = entry.element === last || entry.element === opened;
    const key = isShown ? JSON.stringify([answering, options, spoken, entry.element === last]) : '';
    const old = entry.element.querySelector('.turn > .actions');
    const isEdited = entry.element.querySelector('form') !== null;
    if (old && old.dataset.key === key && !isEdited) {
      return;
    }
    const focused = old && old.contains(document.activeElement)
      ? Array.from(old.children).indexOf(document.activeElement) : -1;
    if (old) {
      old.remove();
    }
    entry.element.querySelector('.more').setAttribute('aria-expanded', String(isShown));
    if (isShown && !isEdited) {
      const actions = actionsOf(turns, i, entry.element, entry.element === last);
      actions.dataset.key = key;
      entry.element.append(actions);
      if (focused >= 0) {
        actions.children[Math.min(focused, actions.children.length - 1)].focus();
      }
    }
  });
}

function actionsOf(turns, i, element, isLast) {
  const turn = turns[i];
  const isUser = turn.role === 'user';
  const actions = make('div', {className: 'actions'});
  const question = isUser ? turn : turns[i - 1];
  if (isLast) {
    const from = isUser ? i : i - 1;
    actions.append(button(say('again'), () => ask(from, question.text), 'again', 'small'));
  }
  if (isUser && !answering) {
    actions.append(button(say('edit'), () => edit(element, i), 'edit', 'small'));
  }
  actions.append(copyButton(() => turn.text, send));
  if (!isUser && options.canSpeak) {
    const isSpoken = spoken === turn.text;
    actions.append(button(say(isSpoken ? 'speakStop' : 'speak'), () => {
      spoken = isSpoken ? null : turn.text;
      send('speak', isSpoken ? {} : {text: element.querySelector('.text').innerText});
      drawActions();
    }, isSpoken ? 'stop' : 'speak', 'small'));
  }
  return actions;
}

/** A tap on a turn shows what can be done with it; another hides it. */
function onTap(event) {
  const element = event.target.closest('.turn');
  const control = event.target.closest('button, a, form, pre, summary');
  const isSelecting = !window.getSelection().isCollapsed;
  if (element === null || isSelecting || (control && !control.classList.contains('more'))) {
    return;
  }
  setOpened(opened === element ? null : element);
  const actions = element.querySelector('.turn > .actions');
  if (control && actions) {
    actions.firstChild.focus();
  }
}

function setOpened(element) {
  opened = element === (live && live.element) ? null : element;
  drawActions();
}

/** Arrow keys move between the turns; Escape ends the editing of one. */
function onKey(event) {
  if (event.key === 'Escape' && !event.isComposing) {
    closeForm();
    return;
  }
  const step = {ArrowUp: -1, ArrowDown: 1}[event.key];
  const element = event.target.closest('.turn');
  if (!step || element === null || event.target.closest('textarea, pre')) {
    return;
  }
  const shown = drawn.map((entry) => entry.element);
  const next = shown[shown.indexOf(element) + step];
  if (next) {
    event.preventDefault();
    next.querySelector('.more').focus();
  }
}

/** Lets the user edit a question in place. */
function edit(element, i) {
  closeForm();
  const turn = turnsShown()[i];
  const form = editForm(turn.text, (text) => {
    form.remove();
    ask(i, text);
  }, closeForm);
  element.append(form);
  drawActions();
  form.querySelector('textarea').focus();
}

function closeForm() {
  const form = find('turns').querySelector('form');
  if (form !== null) {
    const more = form.parentNode.querySelector('.more');
    form.remove();
    drawActions();
    more.focus();
  }
}

/** Asks again, replacing an earlier question. */
function ask(from, text) {
  send('send', {chat: chat.id, from, text, picture: turnsShown()[from].picture});
}

function isNearEnd() {
  const main = find('main');
  return main.scrollHeight - main.scrollTop - main.clientHeight < NEAR_END;
}

/** Scrolls to the end if the end was visible. */
function keepEnd() {
  if (follows && chat !== null) {
    const main = find('main');
    main.scrollTop = main.scrollHeight;
    kept = main.scrollTop;
  }
}
