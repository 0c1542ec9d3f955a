// The way to the host; BRIDGE.md lists what goes over it.

/** Begins to listen; returns how to send a command. */
export function connect(onEvent) {
  window.receive = onEvent;
  return (name, fields) => window.app.send(JSON.stringify(Object.assign({do: name}, fields)));
}
