// What the app is, what it runs, and its licences.

import {make} from './dom.js';
import {say, sayBytes, sayError} from './texts.js';

let notices = null; // third-party licences, once loaded

/** See panels.js. */
export function content(state) {
  const about = state.about || {};
  const rows = rowsOf(state, about);
  return {
    key: [rows, about.folder, state.can],
    make: () => {
      const list = make('dl', {});
      rows.forEach(([name, value]) => list.append(make('dt', {}, say(name)), make('dd', {}, value)));
      const own = state.can.includes('api') ? 'aboutPrivacyApi' : 'aboutPrivacyText';
      const privacy = about.folder ? 'aboutPrivacyFolder' : own;
      return [list,
        make('h3', {}, say('aboutPrivacy')), make('p', {}, say(privacy, about)),
        make('h3', {}, say('aboutLicence')), make('p', {}, say('aboutLicenceText')),
        state.can.includes('notices') ? licences() : null];
    },
  };
}

function rowsOf(state, about) {
  const bundle = state.bundle || {};
  const quantization = bundle.quantization || {};
  return [
    ['aboutApp', 'MiniCPM-V ' + about.app],
    ['aboutModel', [bundle.architecture, quantization.name].filter(Boolean).join(', ')],
    ['aboutSource', (bundle.source || {}).path],
    ['aboutWeights', bundle.weights_bytes && [
      sayBytes(bundle.weights_bytes), say('verified_' + state.verified),
      bundle.weights_file && say('aboutKept', {file: bundle.weights_file}),
    ].filter(Boolean).join(', ')],
    ['aboutPhone', [about.phone, about.android].filter(Boolean).join(', ')],
    ['aboutChip', (state.engine && state.engine.cpu) || about.chip],
    ['aboutMemory', about.memory_bytes && sayBytes(about.memory_bytes)],
  ].filter((row) => row[1]);
}

function licences() {
  const text = make('pre', {tabIndex: 0}, notices || '');
  const details = make('details', {}, make('summary', {}, say('notices')), text);
  details.addEventListener('toggle', () => details.open && readNotices(text));
  return details;
}

async function readNotices(element) {
  if (notices === null) {
    const answer = await fetch('notices.txt');
    notices = answer.ok ? await answer.text() : sayError('file_error');
  }
  element.textContent = notices;
}
