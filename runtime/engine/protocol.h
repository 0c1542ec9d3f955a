// Every name of the engine's protocol; PROTOCOL.md explains them.
//
// `runtime/engine_client/protocol.py` has the same names in classes that correspond to these
// namespaces; error codes are in error.h.
#ifndef MINICPMV_ENGINE_PROTOCOL_H_
#define MINICPMV_ENGINE_PROTOCOL_H_

#include <cstddef>
#include <cstdint>

namespace minicpmv {
namespace protocol {

inline constexpr int64_t kVersion = 1;
inline constexpr size_t kLineLimit = 16 << 20;  // bytes of a request, without its newline

// Operations of requests.
namespace op {
inline constexpr char kLoad[] = "load";
inline constexpr char kImage[] = "image";
inline constexpr char kChat[] = "chat";
inline constexpr char kCancel[] = "cancel";
inline constexpr char kReset[] = "reset";
inline constexpr char kTokenize[] = "tokenize";
inline constexpr char kDetokenize[] = "detokenize";
inline constexpr char kTap[] = "tap";
inline constexpr char kSaveImage[] = "save_image";
inline constexpr char kRestoreImage[] = "restore_image";
inline constexpr char kSelfCheck[] = "selfcheck";
inline constexpr char kBandwidth[] = "bandwidth";
inline constexpr char kProfile[] = "profile";
inline constexpr char kThreads[] = "threads";
}  // namespace op

// Kinds of lines that the engine writes.
namespace event {
inline constexpr char kHello[] = "hello";
inline constexpr char kProgress[] = "progress";
inline constexpr char kText[] = "text";
inline constexpr char kToken[] = "token";
inline constexpr char kDone[] = "done";
inline constexpr char kError[] = "error";
inline constexpr char kSocket[] = "socket";
}  // namespace event

// Stages of progress events, and what they count.
namespace stage {
inline constexpr char kEncode[] = "encode";        // blocks
inline constexpr char kPrefill[] = "prefill";      // tokens
inline constexpr char kSelfCheck[] = "selfcheck";  // prompts
}  // namespace stage

// Why an answer ended.
namespace stop {
inline constexpr char kEos[] = "eos";
inline constexpr char kLength[] = "length";
inline constexpr char kStopString[] = "stop_string";
inline constexpr char kCancelled[] = "cancelled";
}  // namespace stop

// Stages that a tap runs.
namespace tap {
inline constexpr char kCut[] = "cut";
inline constexpr char kPreprocess[] = "preprocess";
inline constexpr char kVisionEmbed[] = "vision_embed";
inline constexpr char kVisionBlock[] = "vision_block";
inline constexpr char kVisionNorm[] = "vision_norm";
inline constexpr char kResampler[] = "resampler";
inline constexpr char kEmbed[] = "embed";
inline constexpr char kLayers[] = "layers";
inline constexpr char kLogits[] = "logits";
}  // namespace tap

namespace field {
// All lines.
inline constexpr char kOp[] = "op";
inline constexpr char kId[] = "id";
inline constexpr char kEvent[] = "event";
// Errors.
inline constexpr char kCode[] = "code";
inline constexpr char kMessage[] = "message";
// hello.
inline constexpr char kProtocol[] = "protocol";
inline constexpr char kToolkitVersion[] = "version";
inline constexpr char kTarget[] = "target";
inline constexpr char kProgramId[] = "program_id";
inline constexpr char kCpuFeatures[] = "cpu_features";
inline constexpr char kRefused[] = "refused";
inline constexpr char kKinds[] = "kinds";
inline constexpr char kThreads[] = "threads";
inline constexpr char kCpu[] = "cpu";
inline constexpr char kMemoryBytes[] = "memory_bytes";
// load.
inline constexpr char kBundle[] = "bundle";
inline constexpr char kWindow[] = "window";
inline constexpr char kKindsFile[] = "kinds_file";
inline constexpr char kWeightsFd[] = "weights_fd";
inline constexpr char kReceiveWeights[] = "receive_weights";
inline constexpr char kDecode[] = "decode";
inline constexpr char kPrefill[] = "prefill";
inline constexpr char kPicture[] = "picture";
inline constexpr char kLoadMs[] = "load_ms";
inline constexpr char kWeightsBytes[] = "weights_bytes";
inline constexpr char kArchitecture[] = "architecture";
inline constexpr char kImageTokens[] = "image_tokens";
inline constexpr char kMaxSlices[] = "max_slices";
// Pictures.
inline constexpr char kPath[] = "path";
inline constexpr char kImage[] = "image";
inline constexpr char kImages[] = "images";
inline constexpr char kGrid[] = "grid";
inline constexpr char kEncodeMs[] = "encode_ms";
inline constexpr char kRemembered[] = "remembered";
// progress.
inline constexpr char kStage[] = "stage";
inline constexpr char kDone[] = "done";
inline constexpr char kTotal[] = "total";
// chat.
inline constexpr char kMessages[] = "messages";
inline constexpr char kRole[] = "role";
inline constexpr char kContent[] = "content";
inline constexpr char kMaxNewTokens[] = "max_new_tokens";
inline constexpr char kDoSample[] = "do_sample";
inline constexpr char kTemperature[] = "temperature";
inline constexpr char kTopK[] = "top_k";
inline constexpr char kTopP[] = "top_p";
inline constexpr char kRepetitionPenalty[] = "repetition_penalty";
inline constexpr char kSeed[] = "seed";
inline constexpr char kStop[] = "stop";
inline constexpr char kAsOriginal[] = "as_original";
inline constexpr char kTopLogprobs[] = "top_logprobs";
inline constexpr char kLookup[] = "lookup";
inline constexpr char kToken[] = "token";
inline constexpr char kLogprob[] = "logprob";
inline constexpr char kTop[] = "top";
inline constexpr char kPiece[] = "piece";
inline constexpr char kText[] = "text";
inline constexpr char kIds[] = "ids";
inline constexpr char kStatistics[] = "statistics";
inline constexpr char kPrefillMs[] = "prefill_ms";
inline constexpr char kDecodeMs[] = "decode_ms";
inline constexpr char kPrefillTokS[] = "prefill_tok_s";
inline constexpr char kDecodeTokS[] = "decode_tok_s";
inline constexpr char kPromptTokens[] = "prompt_tokens";
inline constexpr char kReusedTokens[] = "reused_tokens";
inline constexpr char kGeneratedTokens[] = "generated_tokens";
inline constexpr char kDecodeSteps[] = "decode_steps";
inline constexpr char kDraftedTokens[] = "drafted_tokens";
inline constexpr char kAcceptedTokens[] = "accepted_tokens";
inline constexpr char kPeakRssBytes[] = "peak_rss_bytes";
// tokenize.
inline constexpr char kImageStart[] = "image_start";
inline constexpr char kSliceStarts[] = "slice_starts";
// tap.
inline constexpr char kWhat[] = "what";
inline constexpr char kInput[] = "input";
inline constexpr char kOutput[] = "output";
inline constexpr char kIndex[] = "index";
inline constexpr char kPerLayer[] = "per_layer";
inline constexpr char kPinned[] = "pinned";
inline constexpr char kShape[] = "shape";
inline constexpr char kWidth[] = "width";
inline constexpr char kHeight[] = "height";
inline constexpr char kColumns[] = "columns";
inline constexpr char kRows[] = "rows";
// selfcheck.
inline constexpr char kPassed[] = "passed";
inline constexpr char kChecks[] = "checks";
inline constexpr char kQuestion[] = "question";
inline constexpr char kExpected[] = "expected";
// Files, sockets, memory and profiling.
inline constexpr char kBytes[] = "bytes";
inline constexpr char kMs[] = "ms";
inline constexpr char kLaunchUs[] = "launch_us";
inline constexpr char kKernels[] = "kernels";
inline constexpr char kName[] = "name";
inline constexpr char kCalls[] = "calls";
}  // namespace field

}  // namespace protocol
}  // namespace minicpmv

#endif  // MINICPMV_ENGINE_PROTOCOL_H_
