// The connection to `minicpmv chat --web`: commands are posted, events are streamed.

const MOST = 20; // pictures at once
const TYPES = '.jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff';

/** Starts listening for events; returns a function that sends a command. */
export function toServer(onEvent) {
  const isDark = window.matchMedia('(prefers-color-scheme: dark)');
  let isLost = false;
  let sent = Promise.resolve(); // keeps commands in order

  function publish(event) {
    if (event.event === 'state') { // add what only the browser knows
      event.dark = event.dark === undefined ? isDark.matches : event.dark;
      event.language = event.language || navigator.language;
    }
    onEvent(event);
  }

  function reportLost() {
    if (!isLost) {
      isLost = true; // report it only once
      publish({event: 'error', code: 'no_server', message: ''});
    }
  }

  function post(fields) {
    const headers = {'Content-Type': 'application/json'};
    sent = sent.then(() => fetch('command', {method: 'POST', headers, body: JSON.stringify(fields)}))
      .catch(reportLost);
  }

  const source = new EventSource('events');
  source.onmessage = (message) => publish(JSON.parse(message.data));
  source.onopen = () => { isLost = false; }; // the host sends the whole state again
  source.onerror = reportLost;
  isDark.addListener(() => post({do: 'hello'}));
  acceptFiles();

  const own = { // commands that the browser handles itself
    picture: () => choosePicture(),
    copy: (fields) => navigator.clipboard.writeText(fields.text).catch((error) =>
      publish({event: 'error', code: 'unknown', message: String(error)})),
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

/** Lets the user choose pictures. */
function choosePicture() {
  const input = document.createElement('input');
  input.type = 'file';
  input.accept = TYPES;
  input.multiple = true;
  input.addEventListener('change', () => uploadAll(input.files));
  input.click();
}

/** Accepts pictures that are dropped on the page or pasted into it. */
function acceptFiles() {
  document.addEventListener('dragover', (event) => {
    if (event.dataTransfer.types.includes('Files')) {
      event.preventDefault(); // otherwise the browser would navigate to the file
    }
  });
  const take = (event, given) => {
    if (given.files.length > 0) {
      event.preventDefault();
      uploadAll(given.files);
    }
  };
  document.addEventListener('drop', (event) => take(event, event.dataTransfer));
  document.addEventListener('paste', (event) => take(event, event.clipboardData));
}

/** Uploads pictures to the host, which accepts or refuses each; of several the page asks which. */
async function uploadAll(files) {
  const path = files.length > 1 ? 'picture?several' : 'picture';
  for (const file of Array.from(files).slice(0, MOST)) {
    const headers = {'Content-Type': 'application/octet-stream'};
    await fetch(path, {method: 'POST', headers, body: file}).catch(() => {
      // The host has already reported the error: it closes the connection if the file is too large.
    });
  }
}

function save(path) {
  const link = document.createElement('a');
  link.href = path;
  link.download = '';
  link.click();
}
