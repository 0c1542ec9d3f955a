// The way to the host; BRIDGE.md lists what goes over it.

import {toServer} from './http.js';

/** Begins to listen; returns how to send a command. */
export function connect(onEvent) {
  return window.app ? toApp(onEvent) : toServer(onEvent);
}

/** The app offers an object to the page, and calls a function of it. */
function toApp(onEvent) {
  window.receive = onEvent;
  return (name, fields) => window.app.send(JSON.stringify(Object.assign({do: name}, fields)));
}
