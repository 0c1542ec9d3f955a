// The way to a host on this PC: `minicpmv chat --web`; commands are posted, events are streamed.

const TYPES = '.jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff';

/** Begins to listen; returns how to send a command. */
export function toServer(onEvent) {
  const isDark = window.matchMedia('(prefers-color-scheme: dark)');
  let isLost = false;
  let sent = Promise.resolve(); // one command after the other

  function hear(event) {
    if (event.event === 'state') { // what the browser knows, and the host does not
      event.dark = isDark.matches;
      event.language = event.language || navigator.language;
    }
    onEvent(event);
  }

  function lose() {
    if (!isLost) {
      isLost = true; // said once
      hear({event: 'error', code: 'no_server', message: ''});
    }
  }

  function post(fields) {
    const headers = {'Content-Type': 'application/json'};
    sent = sent.then(() => fetch('command', {method: 'POST', headers, body: JSON.stringify(fields)}))
      .catch(lose);
  }

  const source = new EventSource('events');
  source.onmessage = (message) => hear(JSON.parse(message.data));
  source.onopen = () => { isLost = false; }; // the host tells all anew
  source.onerror = lose;
  isDark.addListener(() => post({do: 'hello'}));

  const own = { // what a browser does itself
    picture: () => choosePicture(),
    copy: (fields) => navigator.clipboard.writeText(fields.text).catch((error) =>
      hear({event: 'error', code: 'unknown', message: String(error)})),
    log: () => save('log'),
  };
  return (name, fields) => {
    if (own[name]) {
      own[name](fields);
    } else {
      post(Object.assign({do: name}, fields));
    }
  };
}

/** Lets the user choose a picture and brings it to the host, which says what it thinks of it. */
function choosePicture() {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = TYPES;
  input.addEventListener('change', () => {
    const headers = {'Content-Type': 'application/octet-stream'};
    fetch('picture', {method: 'POST', headers, body: input.files[0]}).catch(() => {
      // The host told of it already: it hangs up on what is too large.
    });
  });
  input.click();
}

function save(path) {
  const link = document.createElement('a');
  link.href = path;
  link.download = '';
  link.click();
}
