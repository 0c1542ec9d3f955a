// The settings: those that everybody needs, and the others under "Advanced".

import {button, make} from './dom.js';
import {say} from './texts.js';

const SAMPLING = ['temperature', 'top_p', 'top_k']; // disabled for greedy decoding
const LENGTHS = {lengthShort: 128, lengthMedium: 512, lengthLong: 1024}; // tokens

let send; // to the host
let panels; // `open`
let isAdvanced = false; // the second part is open

/** Sets up the settings. */
export function start(sender, access) {
  send = sender;
  panels = access;
}

/** See panels.js. */
export function content(state) {
  const settings = state.settings;
  const can = (what) => state.can.includes(what);
  return {
    key: [settings, state.ranges, state.can],
    make: () => settings
      ? [...simple(settings), advanced(state, can), ...buttons(can)]
      : [make('p', {}, say('waiting'))],
  };
}

function simple(settings) {
  return [
    choiceField('length', settings.max_new_tokens, lengths(settings.max_new_tokens),
      (value) => choose('max_new_tokens', Number(value))),
    choiceField('language', settings.language,
      [['system', say('asSystem')], ['en', 'English'], ['zh', '中文']],
      (value) => choose('language', value)),
    choiceField('theme', settings.theme,
      [['system', say('asSystem')], ['light', say('themeLight')], ['dark', say('themeDark')]],
      (value) => choose('theme', value)),
  ];
}

function lengths(chosen) {
  const options = Object.keys(LENGTHS).map((name) => [LENGTHS[name], say(name)]);
  const isOther = !options.some(([value]) => value === chosen);
  return isOther ? options.concat([[chosen, say('lengthOther', {tokens: chosen})]]) : options;
}

function advanced(state, can) {
  const settings = state.settings;
  const names = Object.keys(state.ranges).filter((name) => name !== 'threads' || can('threads'));
  const details = make('details', {open: isAdvanced, id: 'advanced'},
    make('summary', {}, say('advanced')),
    checkField('show_speed', 'showSpeed', settings),
    checkField('do_sample', 'doSample', settings),
    ...names.map((name) => numberField(name, state)));
  details.addEventListener('toggle', () => { isAdvanced = details.open; });
  return details;
}

function buttons(can) {
  const reset = button(say('resetSettings'), () => send('settings'));
  reset.id = 'reset';
  return [make('div', {className: 'buttons'}, reset,
    can('check') ? opener('check') : null,
    can('bench') ? opener('bench') : null,
    button(say('saveLog'), () => send('log')),
    opener('about'))];
}

function opener(panel) {
  const element = button(say(panel), () => panels.open(panel));
  element.id = 'open-' + panel;
  return element;
}

function choose(name, value) {
  send('settings', {settings: {[name]: value}});
}

function choiceField(name, chosen, options, onChoice) {
  const id = 'set-' + name;
  const select = make('select', {id},
    ...options.map(([value, text]) => make('option', {value: String(value)}, text)));
  select.value = String(chosen);
  select.addEventListener('change', () => onChoice(select.value));
  return make('div', {className: 'field'}, make('label', {htmlFor: id}, say(name)), select);
}

function checkField(name, text, settings) {
  const box = make('input', {type: 'checkbox', id: 'set-' + name, checked: settings[name]});
  box.setAttribute('aria-describedby', box.id + '-note');
  box.addEventListener('change', () => choose(name, box.checked));
  return make('div', {className: 'field check'},
    make('label', {}, box, say(text)),
    make('div', {className: 'note', id: box.id + '-note'}, say(text + 'Note')));
}

function numberField(name, state) {
  const id = 'set-' + name;
  const {min, max, step} = state.ranges[name];
  const box = make('input', {type: 'number', id, inputMode: 'decimal', min, max, step});
  box.value = state.settings[name];
  box.disabled = SAMPLING.includes(name) && !state.settings.do_sample;
  box.setAttribute('aria-describedby', id + '-note');
  box.addEventListener('change', () => {
    if (box.value !== '' && box.checkValidity()) {
      choose(name, Number(box.value));
      box.dataset.valid = box.value;
    } else {
      box.value = box.dataset.valid || state.settings[name]; // out of range: the old value
    }
  });
  return make('div', {className: 'field'},
    make('label', {htmlFor: id}, say(name)), box,
    make('div', {className: 'note', id: id + '-note'}, say(name + 'Note')));
}
