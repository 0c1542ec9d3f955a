// What an engine was built as. convert/engine/build.py writes the values.
#ifndef MINICPMV_ENGINE_BUILD_INFO_H_
#define MINICPMV_ENGINE_BUILD_INFO_H_

namespace minicpmv {

// A model's blocks, compiled for one kind of processor and linked into this program.
struct BlockLibrary {
  const char* prefix;    // of its functions in the system library
  const char* features;  // what it needs of the processor: names, with spaces between
};

extern const char kVersion[];    // of the toolkit
extern const char kTarget[];     // for example "android-arm64"
extern const char kProgramId[];  // a bundle for other blocks has another
// The best first; one whose prefix is nullptr ends the list.
extern const BlockLibrary kBlockLibraries[];

}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_BUILD_INFO_H_
