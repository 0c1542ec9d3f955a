// The self-check and the speed test.

import {button, make} from './dom.js';
import {say, sayBytes} from './texts.js';
import {copyButton} from './turns.js';

let send; // to the host
let panels; // `redraw`
let results = null; // of the latest self-check
let speeds = null; // of the latest speed test

/** Sets up both. */
export function start(sender, access) {
  send = sender;
  panels = access;
}

/** Shows the results of a self-check. */
export function showResults(event) {
  results = event.results;
  panels.redraw('check');
}

/** Shows the results of a speed test. */
export function showSpeeds(event) {
  speeds = event.results;
  panels.redraw('bench');
}

/** See panels.js. */
export function checkContent(state) {
  const isRunning = Boolean(state.job) && state.job.kind === 'check';
  return {
    key: [isRunning, Boolean(state.job), results],
    make: () => {
      const rows = (results || []).map((result) => make('li', {},
        make('span', {className: result.ok ? 'ok' : 'failed'}, say(result.ok ? 'ok' : 'notOk')),
        ' ', say('check_' + result.name), make('div', {className: 'detail'}, result.detail)));
      const verdict = results === null || isRunning ? null
        : make('p', {role: 'status'},
          say(results.every((r) => r.ok) ? 'checkGood' : 'checkBad'));
      return [make('p', {}, say('checkIntro')),
        runButton('checkRun', isRunning, state, () => {
          results = null;
          send('check');
        }),
        verdict, rows.length > 0 ? make('ul', {className: 'results'}, ...rows) : null];
    },
  };
}

/** See panels.js. */
export function benchContent(state) {
  const isRunning = Boolean(state.job) && state.job.kind === 'bench';
  const known = speeds === null || isRunning ? [] : speedRows(speeds);
  return {
    key: [isRunning, Boolean(state.job), speeds, state.can],
    make: () => {
      const list = make('dl', {});
      known.forEach(([name, value]) => list.append(make('dt', {}, name), make('dd', {}, value)));
      const text = () => report(state, known);
      const share = state.can.includes('share')
        ? button(say('share'), () => send('share', {text: text()}), 'share') : null;
      return [make('p', {}, say('benchIntro')),
        runButton('benchRun', isRunning, state, () => {
          speeds = null;
          send('bench');
        }),
        ...(known.length > 0
          ? [list, make('div', {className: 'actions'}, share, copyButton(text, send))] : [])];
    },
  };
}

function runButton(name, isRunning, state, onRun) {
  if (isRunning) {
    return make('div', {className: 'actions'}, make('p', {role: 'status'}, say('checking') + '…'),
      button(say('cancel'), () => send('stop')));
  }
  const run = button(say(name), onRun, null, 'strong');
  run.id = name;
  run.disabled = Boolean(state.job);
  return run;
}

function speedRows(found) {
  const rate = (tokens, speed) => say('benchRate', {tokens, rate: speed.toFixed(1)});
  return [
    ['benchPicture', found.encode_ms === undefined ? null
      : say('seconds', {seconds: (found.encode_ms / 1000).toFixed(2)})],
    ['benchPrompt', rate(found.prompt_tokens, found.prefill_tok_s)],
    ['benchAnswer', rate(found.generated_tokens, found.decode_tok_s)],
    ['aboutMemory', found.peak_rss_bytes ? sayBytes(found.peak_rss_bytes) : null],
    ['benchTemperature', found.temperature_c === undefined ? null
      : found.temperature_c.toFixed(1) + ' °C'],
  ].filter((row) => row[1] !== null).map(([name, value]) => [say(name), value]);
}

/** Returns the results as text for others. */
function report(state, rows) {
  const about = state.about || {};
  const model = state.bundle
    ? [state.bundle.architecture, (state.bundle.quantization || {}).name] : [];
  const head = [['', 'MiniCPM-V ' + about.app], ['', model.filter(Boolean).join(', ')],
    ['', [about.phone, about.android, (state.engine && state.engine.cpu) || about.chip]
      .filter(Boolean).join(', ')]];
  return head.concat(rows).filter((row) => row[1])
    .map(([name, value]) => (name ? name + ': ' : '') + value).join('\n');
}
