// The connection to the host; BRIDGE.md lists the commands and events.

import {toServer} from './http.js';

/** Starts listening for events; returns a function that sends a command. */
export function connect(onEvent) {
  return window.app ? toApp(onEvent) : toServer(onEvent);
}

/** In the app: it injects the object `app`, and calls the function `receive`. */
function toApp(onEvent) {
  window.receive = onEvent;
  const send = (name, fields) =>
    window.app.send(JSON.stringify(Object.assign({do: name}, fields)));
  document.addEventListener('paste', (event) => {
    const [file] = event.clipboardData.files;
    if (file) {
      event.preventDefault();
      const reader = new FileReader();
      reader.onload = () => send('paste', {data: reader.result.split(',')[1] || ''});
      reader.readAsDataURL(file);
    }
  });
  return send;
}
