// What the app uses of HarmonyOS's Share Kit, which OpenHarmony's declarations lack; written by its
// reference (systemShare, since 4.1.0(11)).
import type common from '@ohos.app.ability.common';
import type Want from '@ohos.app.ability.Want';

export declare namespace systemShare {
  interface SharedRecord {
    utd: string;
    content?: string;
    uri?: string;
  }

  class SharedData {
    constructor(record: SharedRecord);
    getRecords(): Array<SharedRecord>;
  }

  enum SelectionMode {
    SINGLE = 0,
    BATCH = 1
  }

  enum SharePreviewMode {
    DEFAULT = 0,
    DETAIL = 1
  }

  interface ShareControllerOptions {
    selectionMode?: SelectionMode;
    previewMode?: SharePreviewMode;
  }

  class ShareController {
    constructor(data: SharedData);
    show(context: common.UIAbilityContext, options: ShareControllerOptions): Promise<void>;
  }

  function getSharedData(want: Want): Promise<SharedData>;
}
