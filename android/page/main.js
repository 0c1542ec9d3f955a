// The screen: handles the host's events and shows the state.

import {connect} from './bridge.js';
import * as chatView from './chat.js';
import * as checks from './checks.js';
import * as composer from './composer.js';
import {announce, find} from './dom.js';
import * as history from './history.js';
import * as panels from './panels.js';
import * as shared from './shared.js';
import * as slices from './slices.js';
import * as startScreen from './start_screen.js';
import {say, sayBytes, sayError, sayTime, setLanguage} from './texts.js';

const STAGES = {
  load: 'loading', import: 'importing', verify: 'verifying', decode: 'decoding',
  encode: 'encoding', prefill: 'reading', selfcheck: 'checking',
};
const STOPPABLE = ['import', 'check', 'bench', 'serve']; // an answer has its own stop button

let state = null; // the latest from the host
let progress = null; // the latest of the running job
let takesBack = false; // what the host knows of Back

const send = connect(onEvent);
chatView.start(send);
panels.start(send);
composer.start(send, (text, picture) => {
  find('alert').hidden = true;
  send('send', {chat: chatView.shownChat(), text, picture});
});
startScreen.start(send, composer.useExample);
wire();
send('hello');

function onEvent(event) {
  const handlers = {
    state: onState, chat: onChat, text: onText, progress: onProgress, error: onError,
    back: onBack, picture: composer.setPicture, draft: composer.restore,
    dictated: composer.insert, shared: shared.show, found: history.showFound,
    check: checks.showResults, bench: checks.showSpeeds,
  };
  handlers[event.event](event);
  tellBack();
}

function onState(event) {
  const isOtherLanguage = setLanguage(event.language) || state === null;
  state = Object.assign(event, {shown: chatView.shownChat()});
  document.documentElement.dataset.theme = state.dark ? 'dark' : 'light';
  for (const side of Object.keys(state.insets || {})) {
    document.documentElement.style.setProperty('--inset-' + side, state.insets[side] + 'px');
  }
  if (!state.job) {
    progress = null;
  } else if (progress === null || progress.kind !== state.job.kind) {
    progress = state.job;
  }
  if (isOtherLanguage) {
    label();
  }
  chatView.setOptions({
    showsSpeed: Boolean(state.settings && state.settings.show_speed),
    language: document.documentElement.lang,
    canSpeak: state.can.includes('speak'),
    isSpeaking: Boolean(state.speaking),
  });
  drawProgress();
  composer.update(state);
  startScreen.draw(state);
  panels.update(state);
}

function onChat(event) {
  composer.accepted();
  chatView.showChat(event.chat, event.partial);
  find('title').textContent = (event.chat && event.chat.title) || say('title');
  if (state !== null) {
    state.shown = chatView.shownChat();
    drawProgress();
    startScreen.draw(state);
    panels.update(state);
  }
}

function onText(event) {
  if (!chatView.addText(event.chat, event.at, event.text)) {
    send('hello'); // the host then sends the whole chat
  }
  progress = null;
  drawProgress();
}

function onProgress(event) {
  if (state !== null && state.job && state.job.kind === event.kind) {
    const isFirst = slices.placeOf(progress) === null;
    progress = event;
    drawProgress();
    const place = slices.placeOf(progress);
    if (isFirst && place !== null) {
      announce(say('encodingSlices', place));
    }
  }
}

function onError(event) {
  composer.refused();
  const isExplained = startScreen.isAboutWeights(state, event.code) && !state.model;
  if (isExplained && event.code !== 'no_space') {
    return; // on the start screen, in detail
  }
  const isDetailed = event.code === 'prompt_too_long' && chatView.hasPicture() && hasDetail();
  find('alert').querySelector('span').textContent =
    (isDetailed ? say('lessDetail') : sayError(event.code)) + '\n' + event.message;
  find('alert').hidden = false;
}

/** Whether the model could cut the picture into fewer slices. */
function hasDetail() {
  return Boolean(state && state.model && state.settings)
    && Math.min(state.model.max_slices, state.settings.max_slices) > 1;
}

/** Tells a host that has to know in advance whether Back closes something. */
function tellBack() {
  const takes = panels.isOpen() || chatView.isOpen();
  if (takes !== takesBack && state !== null && state.can.includes('back')) {
    takesBack = takes;
    send('back', {takes});
  }
}

function onBack() {
  if (!panels.closeAll() && !chatView.closeAll()) {
    send('leave');
  }
}

function wire() {
  for (const cause of ['click', 'keyup', 'close', 'focusin']) { // whatever opens or closes something
    document.addEventListener(cause, () => setTimeout(tellBack), true);
  }
  find('open-history').addEventListener('click', () => panels.open('history'));
  find('open-settings').addEventListener('click', () => panels.open('settings'));
  find('new-chat').addEventListener('click', () => {
    send('open');
    find('question').focus();
  });
  find('progress').querySelector('button').addEventListener('click', () => send('stop'));
  find('alert').querySelector('button').addEventListener('click', () => {
    find('alert').hidden = true;
  });
}

/** Sets the labels that depend only on the language. */
function label() {
  const names = {'open-history': 'history', 'new-chat': 'newChat', 'open-settings': 'settings'};
  for (const id of Object.keys(names)) {
    find(id).setAttribute('aria-label', say(names[id]));
    find(id).title = say(names[id]);
  }
  find('alert').querySelector('button').setAttribute('aria-label', say('close'));
  find('progress').querySelector('button').textContent = say('cancel');
  find('main').setAttribute('aria-label', say('chat'));
  if (chatView.shownChat() === undefined) {
    find('title').textContent = say('title');
  }
  composer.label();
  history.label();
}

function drawProgress() {
  const isShown = state !== null && Boolean(state.job) && progress !== null;
  const place = isShown ? slices.placeOf(progress) : null;
  const isHere = isShown && progress.kind === 'answer' && progress.chat === chatView.shownChat();
  slices.draw(isHere ? chatView.askedPicture() : null, place);
  find('progress').hidden = !isShown || progress.kind === 'rest';
  if (!isShown) {
    return;
  }
  const waits = state.answering && progress.kind !== 'answer';
  const stage = place === null
    ? say(STAGES[progress.stage] || 'working') : say('encodingImage', place);
  const whose = progress.kind === 'serve' ? say('serving') + ' – ' : '';
  const name = whose + stage + (waits ? ' – ' + say('waiting') : '');
  const bar = find('progress').querySelector('progress');
  if (progress.total > 0) {
    bar.max = progress.total;
    bar.value = progress.done;
  } else {
    bar.removeAttribute('value'); // indeterminate
  }
  bar.setAttribute('aria-label', name);
  const share = progress.total > 0 && place === null
    ? Math.floor(100 * progress.done / progress.total) : null;
  const speed = progress.bytes_s
    ? ' – ' + say('speedLeft', {speed: sayBytes(progress.bytes_s), left: sayTime(progress.left_s)})
    : '';
  find('progress').querySelector('span').textContent =
    name + (share === null ? '' : ` ${share} %`) + speed;
  find('progress').querySelector('button').hidden = !STOPPABLE.includes(progress.stage)
    && !STOPPABLE.includes(progress.kind);
}
