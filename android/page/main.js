// The screen: handles the host's events, shows the state, and sends questions.

import {connect} from './bridge.js';
import * as chatView from './chat.js';
import {announce, button, fill, find, make} from './dom.js';
import * as panels from './panels.js';
import {say, sayBytes, sayError, setLanguage} from './texts.js';

const WEIGHTS = 'weights.safetensors';
const NEEDS_WEIGHTS = ['no_weights', 'wrong_weights', 'damaged_weights', 'no_space'];
const STAGES = {
  load: 'loading', import: 'importing', verify: 'verifying', decode: 'decoding',
  encode: 'encoding', prefill: 'reading', selfcheck: 'checking',
};
const STOPPABLE = ['import', 'check']; // an answer has its own stop button

let state = null; // the latest from the host
let picture = null; // chosen for the next question
let progress = null; // the latest of the running job
let pending = null; // a question that the host has not accepted yet
let drawn = ''; // identifies the current start screen, so that it is not redrawn

const send = connect(onEvent);
chatView.start(send);
panels.start(send);
wire();
send('hello');

function onEvent(event) {
  const handlers = {
    state: onState, chat: onChat, text: onText, progress: onProgress, picture: onPicture,
    check: (e) => panels.showResults(e.results), error: onError, back: onBack,
    draft: onDraft, dictated: (e) => insert(e.text),
    shared: () => {}, found: () => {}, bench: () => {},
  };
  handlers[event.event](event);
}

function onState(event) {
  const isOtherLanguage = setLanguage(event.language) || state === null;
  state = Object.assign(event, {shown: chatView.shownChat()});
  document.documentElement.dataset.theme = state.dark ? 'dark' : 'light';
  if (!state.job) {
    progress = null;
  } else if (progress === null || progress.kind !== state.job.kind) {
    progress = state.job;
  }
  if (isOtherLanguage) {
    label();
  }
  drawStart();
  drawProgress();
  drawComposer();
  panels.update(state);
}

function onChat(event) {
  pending = null; // the host has accepted the question
  chatView.showChat(event.chat, event.partial);
  const first = event.chat && event.chat.turns[0];
  find('title').textContent = first ? first.text : say('title');
  if (state !== null) {
    state.shown = chatView.shownChat();
    drawStart();
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
    progress = event;
    drawProgress();
  }
}

function onPicture(event) {
  const isNew = picture === null || picture.id !== event.picture.id;
  picture = event.picture;
  drawComposer();
  if (isNew) {
    find('question').focus();
  }
}

function onDraft(event) {
  if (find('question').value === '') {
    insert(event.text);
  }
}

/** Inserts a text into the question, at the cursor. */
function insert(text) {
  const box = find('question');
  const [start, end] = [box.selectionStart, box.selectionEnd];
  box.value = box.value.slice(0, start) + text + box.value.slice(end);
  box.setSelectionRange(start + text.length, start + text.length);
  grow();
  drawComposer();
}

function onError(event) {
  if (pending !== null && find('question').value === '') {
    find('question').value = pending; // it was refused: restore it for the user
    grow();
  }
  pending = null;
  if (isAboutWeights(event.code) && !state.model && event.code !== 'no_space') {
    return; // the start screen explains it in detail
  }
  find('alert').querySelector('span').textContent = sayError(event.code) + '\n' + event.message;
  find('alert').hidden = false;
}

function onBack() {
  if (!panels.closeAll()) {
    send('leave');
  }
}

function wire() {
  find('open-history').addEventListener('click', () => panels.open('history'));
  find('open-settings').addEventListener('click', () => panels.open('settings'));
  find('new-chat').addEventListener('click', () => {
    send('open');
    find('question').focus();
  });
  find('camera').addEventListener('click', () => send('picture', {camera: true}));
  find('gallery').addEventListener('click', () => send('picture', {camera: false}));
  find('stop').addEventListener('click', () => send('stop'));
  find('progress').querySelector('button').addEventListener('click', () => send('stop'));
  find('alert').querySelector('button').addEventListener('click', () => {
    find('alert').hidden = true;
  });
  find('attached').querySelector('button').addEventListener('click', () => {
    picture = null;
    send('drop');
    drawComposer();
    find('question').focus();
  });
  find('question').addEventListener('input', () => {
    grow();
    drawComposer();
  });
  find('question').addEventListener('keydown', onKey);
  find('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    ask();
  });
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
  find('alert').hidden = true;
  find('question').value = '';
  const asked = picture;
  picture = null;
  send('send', {chat: chatView.shownChat(), text, picture: asked ? asked.id : undefined});
  announce(say('working'));
  grow();
  drawComposer();
}

/** Sets the labels that depend only on the language. */
function label() {
  const names = {
    'open-history': 'history', 'new-chat': 'newChat', 'open-settings': 'settings',
    camera: 'camera', gallery: 'gallery', send: 'send', stop: 'stop',
  };
  for (const id of Object.keys(names)) {
    find(id).setAttribute('aria-label', say(names[id]));
    find(id).title = say(names[id]);
  }
  find('alert').querySelector('button').setAttribute('aria-label', say('close'));
  find('attached').querySelector('button').setAttribute('aria-label', say('removePicture'));
  find('progress').querySelector('button').textContent = say('cancel');
  send('hello'); // to redraw the turns in the new language
}

function drawComposer() {
  const isAnswering = Boolean(state && state.answering);
  const sees = !(state && state.model && state.model.image_tokens === 0);
  const box = find('question');
  box.placeholder = say(picture ? 'questionPicture' : 'question');
  box.setAttribute('aria-label', box.placeholder);
  find('send').hidden = isAnswering;
  find('stop').hidden = !isAnswering;
  find('send').disabled = box.value.trim() === '' || !state || Boolean(state.problem);
  find('camera').hidden = !sees || !state || !state.can.includes('camera');
  find('gallery').hidden = !sees;
  find('attached').hidden = picture === null;
  if (picture !== null) {
    find('attached').querySelector('img').src = 'picture/' + picture.id;
    find('attached').querySelector('span').textContent = say('pictureOf', picture);
  }
}

function drawProgress() {
  const isShown = state !== null && Boolean(state.job) && progress !== null;
  find('progress').hidden = !isShown || progress.kind === 'rest';
  if (!isShown) {
    return;
  }
  const waits = state.answering && progress.kind !== 'answer';
  const name = say(STAGES[progress.stage] || 'working') + (waits ? ' – ' + say('waiting') : '');
  const bar = find('progress').querySelector('progress');
  if (progress.total > 0) {
    bar.max = progress.total;
    bar.value = progress.done;
  } else {
    bar.removeAttribute('value'); // indeterminate
  }
  bar.setAttribute('aria-label', name);
  const share = progress.total > 0 ? Math.floor(100 * progress.done / progress.total) : null;
  find('progress').querySelector('span').textContent = name + (share === null ? '' : ` ${share} %`);
  find('progress').querySelector('button').hidden = !STOPPABLE.includes(progress.stage)
    && !STOPPABLE.includes(progress.kind);
}

/** Draws the area above the chat: a problem, a warning, or a hint for the first question. */
function drawStart() {
  const problem = state.job && state.job.kind !== 'answer' ? null : state.problem;
  const start = find('start');
  const isEmpty = chatView.shownChat() === undefined;
  start.hidden = !problem && !isEmpty && !state.low_memory;
  start.className = problem || state.low_memory ? 'card' : 'empty';
  const key = JSON.stringify([problem, state.low_memory, state.language, state.model, isEmpty]);
  if (key === drawn) {
    return; // unchanged; redrawing would take the focus from a button
  }
  drawn = key;
  if (problem && isAboutWeights(problem.code)) {
    drawWeights(start, problem);
  } else if (problem) {
    fill(start, make('h2', {}, say('problemTitle')), make('p', {}, sayError(problem.code)),
      make('p', {className: 'detail'}, problem.message),
      make('div', {className: 'actions'}, retryButton('tryAgain'),
        button(say('saveLog'), () => send('log'))));
  } else if (state.low_memory) {
    fill(start, make('p', {}, say('lowMemory', {
      free: sayBytes(state.low_memory), size: sayBytes(state.bundle.weights_bytes),
    })));
  } else {
    const sees = !(state.model && state.model.image_tokens === 0);
    fill(start, make('p', {className: 'hint'}, say(sees ? 'empty' : 'emptyText')));
  }
}

/** Whether an error means that the user has to provide weights, if the host imports them. */
function isAboutWeights(code) {
  return state !== null && state.can.includes('import') && NEEDS_WEIGHTS.includes(code);
}

/** Draws the first start: how to provide the weights. */
function drawWeights(start, problem) {
  const titles = {wrong_weights: 'startWrong', damaged_weights: 'startDamaged'};
  const intro = say('startIntro', {
    name: WEIGHTS,
    size: sayBytes(state.bundle.weights_bytes),
    free: sayBytes(state.about.free_space_bytes),
  });
  fill(start,
    make('h2', {}, say(titles[problem.code] || 'startTitle')),
    problem.code === 'no_weights' ? null : make('p', {}, sayError(problem.code)),
    problem.code === 'no_weights' ? null : make('p', {className: 'detail'}, problem.message),
    make('p', {}, intro),
    make('ol', {},
      make('li', {}, say('startPc'), ' ', make('code', {}, 'minicpmv sideload')),
      make('li', {}, say('startFile'))),
    make('div', {className: 'actions'},
      button(say('chooseWeights'), () => send('import'), null, 'strong'),
      retryButton('lookAgain')),
    make('p', {className: 'detail'}, say('startPlaces') + '\n' + state.places.join('\n')));
}

function retryButton(text) {
  return button(say(text), () => send('retry'));
}

function grow() {
  const box = find('question');
  box.style.height = 'auto';
  box.style.height = box.scrollHeight + 'px';
}
