// The dialogs over the chat: history, settings, self-check, about.

import {button, fill, find, make, makeIcon} from './dom.js';
import {say, sayBytes, sayError} from './texts.js';

const PANELS = ['history', 'settings', 'check', 'about'];
const SAMPLING = ['temperature', 'top_p', 'top_k']; // disabled for greedy decoding

let send; // to the host
let state = null; // the latest from the host
let results = null; // of the latest self-check
let notices = null; // third-party licences, once loaded

/** Sets up the panels; `sender` sends commands to the host. */
export function start(sender) {
  send = sender;
  for (const name of PANELS) {
    find(name).querySelector('.close').addEventListener('click', () => find(name).close());
  }
}

/** Opens a panel and closes the others. */
export function open(name) {
  closeAll();
  draw(name);
  find(name).showModal();
}

/** Closes all panels; returns whether one was open. */
export function closeAll() {
  const opened = PANELS.filter((name) => find(name).open);
  opened.forEach((name) => find(name).close());
  return opened.length > 0;
}

/** Updates the open panels with the latest state. */
export function update(newState) {
  const isFirst = state === null || state.language !== newState.language;
  state = newState;
  for (const name of PANELS) {
    const isWritten = name === 'settings' && find(name).contains(document.activeElement);
    if (find(name).open && (isFirst || !isWritten)) {
      draw(name);
    }
  }
}

/** Shows the results of a self-check. */
export function showResults(found) {
  results = found;
  draw('check');
}

function draw(name) {
  find(name + '-title').textContent = say(name);
  find(name).querySelector('.close').setAttribute('aria-label', say('close'));
  if (state !== null) {
    ({history: drawHistory, settings: drawSettings, check: drawCheck, about: drawAbout})[name]();
  }
}

/** Whether the host has an optional ability. */
function can(what) {
  return state.can.includes(what);
}

function drawHistory() {
  const rows = state.chats.map((chat) => {
    const date = new Date(chat.changed).toLocaleString(document.documentElement.lang);
    const label = chat.title || say('untitled');
    const opener = make('button', {type: 'button', className: 'open'}, label, make('span', {}, date));
    if (chat.id === state.shown) {
      opener.setAttribute('aria-current', 'true');
    }
    opener.addEventListener('click', () => {
      closeAll();
      send('open', {chat: chat.id});
    });
    return make('li', {}, opener, deleteButton(chat, label));
  });
  const empty = make('li', {}, say('noChats'));
  fill(find('chats'), ...(rows.length > 0 ? rows : [empty]));
}

/** Creates a button that asks on the first press and deletes on the second. */
function deleteButton(chat, label) {
  const element = make('button', {type: 'button', className: 'icon'}, makeIcon('delete'));
  element.setAttribute('aria-label', say('delete') + ': ' + label);
  let isSure = false;
  element.addEventListener('click', () => {
    if (isSure) {
      send('delete', {chat: chat.id});
      return;
    }
    isSure = true;
    element.className = 'strong';
    element.removeAttribute('aria-label');
    fill(element, say('deleteSure'));
  });
  return element;
}

function drawSettings() {
  const settings = state.settings;
  if (!settings) {
    fill(find('settings-body'), make('p', {}, say('waiting')));
    return;
  }
  const language = make('select', {id: 'set-language'},
    make('option', {value: 'system'}, say('languageSystem')),
    make('option', {value: 'en'}, 'English'),
    make('option', {value: 'zh'}, '中文'));
  language.value = settings.language;
  language.addEventListener('change', () => {
    language.blur();
    send('settings', {settings: {language: language.value}});
  });
  fill(find('settings-body'),
    checkField('do_sample', 'doSample', settings),
    ...Object.keys(state.ranges).filter((name) => name !== 'threads' || can('threads'))
      .map((name) => numberField(name, settings)),
    make('div', {className: 'field'},
      make('label', {htmlFor: 'set-language'}, say('language')), language),
    make('div', {className: 'buttons'},
      button(say('resetSettings'), (event) => {
        event.target.blur();
        send('settings');
      }),
      can('check') ? button(say('check'), () => open('check')) : null,
      button(say('saveLog'), () => send('log')),
      button(say('about'), () => open('about'))));
}

function checkField(name, text, settings) {
  const box = make('input', {type: 'checkbox', id: 'set-' + name, checked: settings[name]});
  box.addEventListener('change', () => {
    box.blur();
    send('settings', {settings: {[name]: box.checked}});
  });
  return make('div', {className: 'field check'},
    make('label', {}, box, say(text)),
    make('div', {className: 'note'}, say(text + 'Note')));
}

function numberField(name, settings) {
  const id = 'set-' + name;
  const {min, max, step} = state.ranges[name];
  const box = make('input', {type: 'number', id, inputMode: 'decimal', min, max, step});
  box.value = settings[name];
  box.disabled = SAMPLING.includes(name) && !settings.do_sample;
  box.setAttribute('aria-describedby', id + '-note');
  box.addEventListener('change', () => {
    if (box.value !== '' && box.checkValidity()) {
      send('settings', {settings: {[name]: Number(box.value)}});
    } else {
      box.value = state.settings[name]; // out of range: restore the old value
    }
  });
  return make('div', {className: 'field'},
    make('label', {htmlFor: id}, say(name)), box,
    make('div', {className: 'note', id: id + '-note'}, say(name + 'Note')));
}

function drawCheck() {
  const isRunning = Boolean(state.job) && state.job.kind === 'check';
  const run = button(say('checkRun'), () => {
    results = null;
    send('check');
  }, null, 'strong');
  run.disabled = Boolean(state.job);
  const rows = (results || []).map((result) => make('li', {},
    make('span', {className: result.ok ? 'ok' : 'failed'}, say(result.ok ? 'ok' : 'notOk')),
    ' ', say('check_' + result.name), make('div', {className: 'detail'}, result.detail)));
  const verdict = results === null || isRunning ? null
    : make('p', {role: 'status'}, say(results.every((r) => r.ok) ? 'checkGood' : 'checkBad'));
  fill(find('check-body'), make('p', {}, say('checkIntro')),
    isRunning ? make('p', {}, say('checking') + '…') : run,
    isRunning ? button(say('cancel'), () => send('stop')) : null,
    verdict, make('ul', {className: 'results'}, ...rows));
}

function drawAbout() {
  const about = state.about || {};
  const bundle = state.bundle;
  const rows = [['aboutApp', 'MiniCPM-V ' + about.app]];
  if (bundle) {
    const quantization = bundle.quantization || {};
    rows.push(['aboutModel', [bundle.architecture, quantization.name].filter(Boolean).join(', ')]);
    rows.push(['aboutSource', (bundle.source || {}).path]);
    rows.push(['aboutWeights', bundle.weights_bytes
      && sayBytes(bundle.weights_bytes) + ', ' + say('verified_' + state.verified)]);
  }
  rows.push(['aboutPhone', [about.phone, about.android].filter(Boolean).join(', ')]);
  rows.push(['aboutChip', (state.engine && state.engine.cpu) || about.chip]);
  rows.push(['aboutMemory', about.memory_bytes && sayBytes(about.memory_bytes)]);
  const list = make('dl', {});
  for (const [name, value] of rows.filter((row) => row[1])) {
    list.append(make('dt', {}, say(name)), make('dd', {}, value));
  }
  const text = make('pre', {tabIndex: 0}, notices || '');
  const details = make('details', {}, make('summary', {}, say('notices')), text);
  details.addEventListener('toggle', () => details.open && readNotices(text));
  const privacy = about.folder ? 'aboutPrivacyFolder' : 'aboutPrivacyText';
  fill(find('about-body'), list,
    make('h3', {}, say('aboutPrivacy')), make('p', {}, say(privacy, about)),
    make('h3', {}, say('aboutLicence')), make('p', {}, say('aboutLicenceText')),
    can('notices') ? details : null);
}

async function readNotices(element) {
  if (notices === null) {
    const answer = await fetch('notices.txt');
    notices = answer.ok ? await answer.text() : sayError('file_error');
  }
  element.textContent = notices;
}
