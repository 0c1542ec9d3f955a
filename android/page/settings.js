// The settings: those that everybody needs, and the others under "Advanced".

import {button, make} from './dom.js';
import {say} from './texts.js';

const SAMPLING = ['temperature', 'top_p', 'top_k']; // disabled for greedy decoding
const NORMAL_SLICES = 4; // of the middle choice of detail
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
    key: [settings, state.ranges, state.can, mostSlices(state)],
    make: () => settings
      ? [...simple(settings, mostSlices(state)), advanced(state, can), ...buttons(can)]
      : [make('p', {}, say('waiting'))],
  };
}

/** Returns the most slices that the model cuts a picture into; 0 or 1: it cuts none. */
function mostSlices(state) {
  return state.model && state.model.max_slices || 0;
}

function simple(settings, most) {
  return [
    choiceField('length', settings.max_new_tokens, lengths(settings.max_new_tokens),
      (value) => choose('max_new_tokens', Number(value))),
    most > 1 ? detailField(settings, most) : null,
    choiceField('language', settings.language,
      [['system', say('asSystem')], ['en', 'English'], ['zh', '中文']],
      (value) => choose('language', value)),
    choiceField('theme', settings.theme,
      [['system', say('asSystem')], ['light', say('themeLight')], ['dark', say('themeDark')]],
      (value) => choose('theme', value)),
  ];
}

/** The detail in which pictures are looked at, as the most slices that they are cut into. */
function detailField(settings, most) {
  const chosen = Math.min(settings.max_slices, most);
  const options = [[1, say('detailFast')], [most, say('detailFull')]];
  for (const [slices, name] of [[NORMAL_SLICES, 'detailNormal'], [chosen, 'detailOther']]) {
    if (slices < most && !options.some(([value]) => value === slices)) {
      options.push([slices, say(name, {images: images(slices)})]);
    }
  }
  options.sort(([one], [other]) => one - other);
  return choiceField('max_slices', chosen, options,
    (value) => choose('max_slices', Number(value)),
    say('max_slicesNote', {images: images(chosen), most: images(most)}));
}

/** Returns the most images of a picture: an overview, and slices if there are several. */
function images(slices) {
  return slices > 1 ? slices + 1 : 1;
}

function lengths(chosen) {
  const options = Object.keys(LENGTHS).map((name) => [LENGTHS[name], say(name)]);
  const isOther = !options.some(([value]) => value === chosen);
  return isOther ? options.concat([[chosen, say('lengthOther', {tokens: chosen})]]) : options;
}

function advanced(state, can) {
  const settings = state.settings;
  const names = Object.keys(state.ranges).filter((name) => {
    return name !== 'max_slices' && (name !== 'threads' || can('threads'));
  });
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
    can('api') ? opener('api') : null,
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

function choiceField(name, chosen, options, onChoice, note) {
  const id = 'set-' + name;
  const select = make('select', {id},
    ...options.map(([value, text]) => make('option', {value: String(value)}, text)));
  select.value = String(chosen);
  select.addEventListener('change', () => onChoice(select.value));
  if (note) {
    select.setAttribute('aria-describedby', id + '-note');
  }
  return make('div', {className: 'field'}, make('label', {htmlFor: id}, say(name)), select,
    note ? make('div', {className: 'note', id: id + '-note'}, note) : null);
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
