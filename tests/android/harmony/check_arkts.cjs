// Checks the ArkTS of a project as DevEco Studio's compiler does: syntax, types, ArkTS's own rules.
//
//   node check_arkts.cjs FOLDER-OF-PACKAGES PROJECT
//
// The parser, the type checker and ArkTS's checker are OpenHarmony's (`ohos-typescript`); the
// system's types come from `@arkts/declarations`. Prints a line for each fault.
'use strict';

const fs = require('fs');
const path = require('path');

const [packages, project] = process.argv.slice(2).map((folder) => path.resolve(folder));
const ts = require(path.join(packages, 'ohos-typescript'));
const SDK = path.join(packages, '@arkts/declarations/dist');
const main = path.join(project, 'entry/src/main');

const sources = fs.readdirSync(path.join(main, 'ets'), {recursive: true})
  .filter((name) => name.endsWith('.ets')).map((name) => path.join(main, 'ets', name));
const file = path.join(SDK, 'tsconfig.base.json');
const known = ts.parseConfigFileTextToJson(file, fs.readFileSync(file, 'utf8')).config;
const options = {
  baseUrl: SDK,
  paths: {
    ...known.compilerOptions.paths,
    '@kit.ShareKit': [path.join(__dirname, 'ShareKit.d.ts')],
    'libminicpmv.so': [path.join(main, 'cpp/types/libminicpmv/Index.d.ts')],
  },
  // What ArkUI adds to the language, as far as the project uses it.
  ets: {
    render: {method: ['build', 'pageTransition'], decorator: ['Builder']},
    components: ['Web', 'Column'],
    libs: [],
    extend: {decorator: ['Extend'], components: [
      {name: 'Web', type: 'WebAttribute', instance: 'WebInstance'},
      {name: 'Column', type: 'ColumnAttribute', instance: 'ColumnInstance'},
    ]},
    styles: {decorator: 'Styles', component: {name: 'Common', type: 'T', instance: 'CommonInstance'},
      property: 'stateStyles'},
    concurrent: {decorator: 'Concurrent'},
    customComponent: 'CustomComponent',
    propertyDecorators: [],
    emitDecorators: [],
    syntaxComponents: {paramsUICallback: [], attrUICallback: []},
  },
  allowSyntheticDefaultImports: true,
  etsAnnotationsEnable: true,
  experimentalDecorators: true,
  incremental: true,
  lib: ['lib.es2021.d.ts'],
  module: ts.ModuleKind.CommonJS,
  moduleResolution: ts.ModuleResolutionKind.NodeJs,
  noEmit: true,
  noImplicitReturns: true,
  noTransformedKitInParser: true,
  skipLibCheck: true,
  strict: true,
  target: ts.ScriptTarget.ES2021,
  tsBuildInfoFile: path.join(project, '.tsbuildinfo'),
  types: [],
};
const components = path.join(SDK, 'component');
const globals = [path.join(SDK, 'global.d.ts'),
  ...fs.readdirSync(components).map((name) => path.join(components, name))];
const host = ts.createIncrementalCompilerHost(options);
const program = ts.createIncrementalProgram({rootNames: [...sources, ...globals], options, host});

const faults = new Set();
function report(diagnostic) {
  const isFault = diagnostic.category === ts.DiagnosticCategory.Error;
  if (isFault && diagnostic.file !== undefined && sources.includes(path.resolve(diagnostic.file.fileName))) {
    const {line} = diagnostic.file.getLineAndCharacterOfPosition(diagnostic.start);
    const name = path.relative(main, diagnostic.file.fileName);
    faults.add(`${name}:${line + 1}: ${ts.flattenDiagnosticMessageText(diagnostic.messageText, ' ')}`);
  }
}
for (const name of sources) {
  const source = program.getSourceFile(name);
  program.getSyntacticDiagnostics(source).forEach(report);
  program.getSemanticDiagnostics(source).forEach(report);
}
ts.ArkTSLinter_1_1.runArkTSLinter(program, undefined, undefined, 'ArkTS_1_1').forEach(report);
for (const fault of [...faults].sort()) {
  console.log(fault);
}
