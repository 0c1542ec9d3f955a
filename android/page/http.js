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
  takeGifts();

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

/** Lets the user choose a picture. */
function choosePicture() {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = TYPES;
  input.addEventListener('change', () => bring(input.files[0]));
  input.click();
}

/** Takes pictures that are dropped on the page or pasted into it. */
function takeGifts() {
  document.addEventListener('dragover', (event) => {
    if (event.dataTransfer.types.includes('Files')) {
      event.preventDefault(); // else the browser would show the file in place of the page
    }
  });
  const take = (event, given) => {
    if (given.files.length > 0) {
      event.preventDefault();
      bring(given.files[0]);
    }
  };
  document.addEventListener('drop', (event) => take(event, event.dataTransfer));
  document.addEventListener('paste', (event) => take(event, event.clipboardData));
}

/** Brings a picture to the host, which says what it thinks of it. */
function bring(file) {
  const headers = {'Content-Type': 'application/octet-stream'};
  fetch('picture', {method: 'POST', headers, body: file}).catch(() => {
    // The host told of it already: it hangs up on what is too large.
  });
}

function save(path) {
  const link = document.createElement('a');
  link.href = path;
  link.download = '';
  link.click();
}
