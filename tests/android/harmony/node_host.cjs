// The ArkTS app's logic in Node: commands of the page come as lines, events go out as lines.
//
//   node node_host.cjs FOLDER-OF-PACKAGES FOLDER BUNDLE CONFIGS ENGINE…
//
// ENGINE… is the command line of an engine, which stands for the native module. A line with `host` is
// for the host: `choose` the file that a picker gives from now on, `offer` a picture with others,
// `break` copies after so many bytes, `spare`: the phone is hot, or not any more.
'use strict';

const childProcess = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const readline = require('readline');
const zlib = require('zlib');

const [packages, folder, bundle, configs, ...engine] = process.argv.slice(2);
const ts = require(path.join(packages, 'ohos-typescript'));
const CORE = path.resolve(__dirname, '../../../android/harmony/project/entry/src/main/ets/core');
const loaded = new Map();

/** Loads a module of the app's logic. */
function load(name) {
  if (!loaded.has(name)) {
    const file = path.join(CORE, name + '.ets');
    const options = {module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2021};
    const source = ts.transpileModule(fs.readFileSync(file, 'utf8'), {compilerOptions: options});
    const module = {exports: {}};
    loaded.set(name, module.exports);
    new Function('require', 'exports', source.outputText)(
      (other) => load(path.basename(other)), module.exports);
  }
  return loaded.get(name);
}

const said = (event) => process.stdout.write(JSON.stringify(event) + '\n');

let left = Infinity; // bytes that can be appended until that breaks

const files = {
  exists: (file) => fs.existsSync(file),
  size: (file) => fs.statSync(file).size,
  changed: (file) => Math.floor(fs.statSync(file).mtimeMs),
  start: (file, bytes) => new Uint8Array(fs.readFileSync(file).subarray(0, bytes)),
  readText: (file) => fs.readFileSync(file, 'utf8'),
  writeText: (file, text) => fs.writeFileSync(file, text),
  writeBytes: (file, bytes) => fs.writeFileSync(file, bytes),
  move: (from, to) => fs.renameSync(from, to),
  remove: (file) => fs.rmSync(file, {force: true}),
  makeFolder: (file) => fs.mkdirSync(file, {recursive: true}),
  list: (file) => fs.readdirSync(file),
  free: () => 1 << 30,
  append: async (from, start, count, to) => {
    const source = fs.openSync(from, 'r');
    const bytes = Buffer.alloc(count);
    const read = fs.readSync(source, bytes, 0, count, start);
    fs.closeSync(source);
    fs.appendFileSync(to, bytes.subarray(0, Math.min(read, left)));
    left -= read;
    if (read < count || left < 0) {
      throw new Error('the file has ended early');
    }
  },
  truncate: (file, size) => {
    fs.closeSync(fs.openSync(file, 'a'));
    fs.truncateSync(file, size);
  },
  flush: () => {},
  hash: async (file) => crypto.createHash('sha256').update(fs.readFileSync(file)).digest('hex'),
};

/** Returns the size and pixels of a PNG with 8 bits of red, green and blue, as the tests have. */
function decode(file) {
  const png = fs.readFileSync(file);
  const [width, height] = [png.readUInt32BE(16), png.readUInt32BE(20)];
  const parts = [];
  for (let at = 8; at < png.length;) {
    const length = png.readUInt32BE(at);
    if (png.toString('latin1', at + 4, at + 8) === 'IDAT') {
      parts.push(png.subarray(at + 8, at + 8 + length));
    }
    at += length + 12;
  }
  return {width, height, bytes: zlib.inflateSync(Buffer.concat(parts)).length};
}

const decoder = {
  preview: async (file, target) => {
    const {width, height} = decode(file);
    fs.copyFileSync(file, target);
    return {width, height};
  },
  pixels: async (file, target) => {
    const {width, height} = decode(file);
    const bytes = new Uint8Array(24 + 3 * width * height);
    load('Model').writePictureHeader(bytes, width, height);
    fs.writeFileSync(target, bytes);
  },
};

const running = new Map();
const native = {
  start: (listener) => {
    const handle = running.size + 1;
    const process = childProcess.spawn(engine[0], engine.slice(1), {stdio: ['pipe', 'pipe', 'ignore']});
    const lines = readline.createInterface({input: process.stdout});
    process.stdin.on('error', () => {}); // it has ended
    // The fake engine has as many threads as it is told; this one has as many as a phone.
    lines.on('line', (line) => listener(line.replace(/"threads": "\d*"/, '"threads": 4')));
    lines.on('close', () => listener(null));
    running.set(handle, process);
    return handle;
  },
  send: (handle, line) => {
    const {op, threads} = JSON.parse(line);
    if (op === 'threads') {
      said({host: 'threads', threads});
    }
    running.get(handle).stdin.write(line + '\n');
  },
  close: (handle) => running.get(handle).stdin.end(),
};

let chosen = null;
const host = {
  toPage: said,
  setBusy: () => {},
  choosePicture: () => assistant.addPicture(chosen),
  chooseWeights: () => assistant.importWeights(chosen),
  takePhoto: (file) => {
    said({host: 'photo', file});
    fs.copyFileSync(chosen, file);
    assistant.addPicture(file).then(() => fs.rmSync(file));
  },
  share: (text) => said({host: 'share', text}),
  copy: (text) => said({host: 'copy', text}),
  save: (name, text) => said({host: 'save', name, text}),
  leave: () => said({host: 'leave'}),
  language: () => 'en-US',
  isDark: () => false,
  setDark: () => {},
  about: () => ({app: '0', phone: 'Node'}),
  packagedText: (name) => fs.readFileSync(packagedFile(name), 'utf8'),
  unpack: (name, target) => fs.copyFileSync(packagedFile(name), target),
  decodeBase64: (text) => new Uint8Array(Buffer.from(text, 'base64')),
  newId: () => crypto.randomUUID(),
  now: () => Date.now(),
};

function packagedFile(name) {
  const [kind, file] = name.split('/');
  return path.join(kind === 'bundle' ? bundle : configs, file);
}

const {Platform, Paths} = load('Platform');
const {Assistant} = load('Assistant');
const paths = new Paths(path.join(folder, 'files'), path.join(folder, 'cache'));
const assistant = new Assistant(new Platform(host, files, decoder, native, paths));
const byTests = {
  choose: (command) => {
    chosen = command.path;
  },
  offer: (command) => assistant.offerPicture(command.path),
  spare: (command) => assistant.setSparing(command.on),
  break: (command) => {
    left = command.after;
  },
};
const input = readline.createInterface({input: process.stdin});
input.on('line', (line) => {
  let command = null;
  try {
    command = JSON.parse(line);
  } catch {
    // the app's to refuse
  }
  const work = command === null ? undefined : byTests[command.host];
  if (work === undefined) {
    assistant.receive(line);
  } else {
    work(command);
  }
});
input.on('close', () => assistant.close());
