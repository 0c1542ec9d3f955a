// The server for other apps: switched on, its address and token, and what it has done.

import {button, make} from './dom.js';
import {say, sayError} from './texts.js';
import {copyButton} from './turns.js';

let send; // to the host

/** Sets up the panel. */
export function start(sender) {
  send = sender;
}

/** See panels.js. */
export function content(state) {
  const api = state.api || {};
  return {
    key: api,
    make: () => [make('p', {}, say('apiIntro')), onField(api), problem(api),
      ...(api.on ? [values(api), renewal()] : []), portField(api)],
  };
}

function onField(api) {
  const box = make('input', {type: 'checkbox', id: 'api-on', checked: Boolean(api.on)});
  box.addEventListener('change', () => send('api', {on: box.checked}));
  return make('div', {className: 'field check'}, make('label', {}, box, say('apiOn')));
}

function problem(api) {
  return api.problem === undefined ? null
    : make('p', {role: 'alert', className: 'failed'},
      sayError(api.problem.code), make('div', {className: 'detail'}, api.problem.message));
}

function values(api) {
  const list = make('dl', {});
  for (const [name, value] of [
    ['apiAddress', api.address], ['apiToken', api.token], ['apiModel', api.model],
  ].filter((row) => row[1])) {
    list.append(make('dt', {}, say(name)),
      make('dd', {}, make('code', {}, value), ' ', copyButton(() => value, send)));
  }
  for (const [name, value] of [['apiAnswered', api.answered], ['apiRefused', api.refused]]) {
    list.append(make('dt', {}, say(name)), make('dd', {id: name}, String(value)));
  }
  return list;
}

function renewal() {
  const renew = button(say('apiRenew'), () => send('api', {renew: true}));
  renew.id = 'api-renew';
  return make('div', {className: 'field'}, renew,
    make('div', {className: 'note'}, say('apiRenewNote')));
}

function portField(api) {
  const box = make('input',
    {type: 'number', id: 'api-port', inputMode: 'numeric', min: 1024, max: 65535, step: 1});
  box.value = api.port;
  box.addEventListener('change', () => {
    if (box.value !== '' && box.checkValidity()) {
      send('api', {port: Number(box.value)});
    } else {
      box.value = api.port; // out of range: the old value
    }
  });
  return make('div', {className: 'field'}, make('label', {htmlFor: box.id}, say('apiPort')), box);
}
