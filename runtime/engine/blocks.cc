#include "runtime/engine/blocks.h"

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/runtime/memory/memory_manager.h>

#include <utility>

#include "runtime/engine/error.h"
#include "runtime/engine/thread_pool.h"

namespace minicpmv {
namespace {

namespace ffi = tvm::ffi;
using tvm::runtime::memory::AllocatorType;
using tvm::runtime::memory::MemoryManager;

constexpr AllocatorType kAllocator = AllocatorType::kPooled;

ffi::Module LoadVm(const std::string& prefix) {
  const ffi::Function load = ffi::Function::GetGlobalRequired("ffi.SystemLib");
  const auto library = load(prefix).cast<ffi::Module>();
  const auto make = library->GetFunction("vm_load_executable", true);
  if (!make.has_value())
    throw EngineError(error_code::kInternal, "the compiled blocks contain no VM program");
  const auto vm = (*make)().cast<ffi::Module>();
  (*vm->GetFunction("vm_initialization", true))(static_cast<int>(kDLCPU), 0,
                                                static_cast<int>(kAllocator));
  return vm;
}

// Appends the names of a linear layer's or a norm's weight and bias.
void AddPair(const std::string& name, std::vector<std::string>* names) {
  names->push_back(name + ".weight");
  names->push_back(name + ".bias");
}

}  // namespace

Blocks::Blocks(const Kinds& kinds, const Bundle& bundle)
    : bundle_(bundle), config_(bundle.config()) {
  for (const Kind* kind : {&kinds.decode, &kinds.prefill, &kinds.picture}) {
    if (vms_.count(kind->prefix) == 0) vms_[kind->prefix] = LoadVm(kind->prefix);
  }
  if (config_.vision) {
    const Kind& kind = kinds.picture;
    vision_embed_ =
        Bind(kind, "vision_embed", {"vision.patch_embed.weight", "vision.patch_embed.bias"});
    for (int64_t i = 0; i < config_.vision->depth; ++i) {
      std::vector<std::string> names;
      const std::string block = "vision.blocks." + std::to_string(i) + ".";
      for (const char* part : {"norm1", "qkv", "proj", "norm2", "fc1", "fc2"}) {
        AddPair(block + part, &names);
      }
      vision_blocks_.push_back(
          Bind(kind,
               Variant("vision_block", {block + "qkv.weight", block + "proj.weight",
                                        block + "fc1.weight", block + "fc2.weight"}),
               names));
    }
    vision_norm_ = Bind(kind, "vision_norm", {"vision.norm.weight", "vision.norm.bias"});
    resampler_ =
        Bind(kind, "resampler",
             {"resampler.kv_proj.weight", "resampler.ln_kv.weight", "resampler.ln_kv.bias",
              "resampler.query", "resampler.k_proj.weight", "resampler.v_proj.weight",
              "resampler.v_proj.bias", "resampler.out_proj.weight", "resampler.out_proj.bias",
              "resampler.ln_post.weight", "resampler.ln_post.bias", "resampler.proj.weight"});
    if (config_.vision->slices) {
      key_positions_ =
          Bind(kind, "key_positions",
               {"resampler.key_column_proj.weight", "resampler.key_row_proj.weight",
                "resampler.k_proj.bias"});
    }
  }
  embed_ = Bind(kinds.decode, "embed", {"llm.embed"});
  for (int64_t i = 0; i < config_.decoder.num_hidden_layers; ++i) {
    std::vector<std::string> names;
    const std::string layer = "llm.layers." + std::to_string(i) + ".";
    for (const char* part :
         {"input_norm.weight", "qkv", "o", "post_norm.weight", "gate_up", "down"}) {
      names.push_back(layer + part);
    }
    const std::vector<std::string> matrices{layer + "qkv", layer + "o", layer + "gate_up",
                                            layer + "down"};
    layers_.push_back(Bind(kinds.prefill, Variant("decoder_layer", matrices), names));
    steps_.push_back(Bind(kinds.decode, Variant("decoder_step", matrices), names));
  }
  lm_head_ = Bind(kinds.decode, "lm_head",
                  {"llm.norm.weight", config_.untied_head ? "llm.head" : "llm.embed"});
}

Tensor Blocks::VisionEmbed(const Tensor& pixels, const Tensor& positions) const {
  return Call(vision_embed_, {pixels, positions});
}

Tensor Blocks::VisionBlock(int64_t index, const Tensor& x) const {
  return Call(vision_blocks_.at(static_cast<size_t>(index)), {x});
}

Tensor Blocks::VisionNorm(const Tensor& x) const { return Call(vision_norm_, {x}); }

Tensor Blocks::Resample(const Tensor& features, const Tensor& key_positions) const {
  return Call(resampler_, {features, key_positions});
}

Tensor Blocks::KeyPositions(const Tensor& columns, const Tensor& rows) const {
  return Call(key_positions_, {columns, rows});
}

Tensor Blocks::Embed(const Tensor& ids) const { return Call(embed_, {ids}); }

Tensor Blocks::DecoderLayer(int64_t index, const Tensor& x, const LayerCache& cache) const {
  const ffi::Shape numbers{cache.start, cache.window, cache.pinned};
  const std::vector<Block>& layers = x.size(0) == 1 ? steps_ : layers_;
  std::vector<ffi::AnyView> inputs{x, cache.angles};
  inputs.insert(inputs.end(), cache.tensors.begin(), cache.tensors.end());
  inputs.emplace_back(numbers);
  return Call(layers.at(static_cast<size_t>(index)), std::move(inputs));
}

Tensor Blocks::Logits(const Tensor& hidden) const { return Call(lm_head_, {hidden}); }

std::map<std::string, Profile::Time> Blocks::TakeProfile() {
  if (profile_ == nullptr) {
    profile_ = std::make_shared<Profile>();
    // The VM calls this before and after each kernel with: the kernel, its name, whether this is
    // the call before, the kernel's return value, and the kernel's arguments.
    const auto record = [profile = profile_](ffi::PackedArgs args, ffi::Any* result) {
      constexpr int64_t kGoOn = 0;  // tvm::runtime::vm::VMInstrumentReturnKind::kNoOp
      if (args[2].cast<bool>()) {
        profile->Begin();
      } else {
        const auto first = args.size() > 4 ? args[4].as<Tensor>() : std::nullopt;
        const bool has_rows = first.has_value() && first->ndim() > 0;
        profile->End(args[1].cast<std::string>(), has_rows ? first->size(0) : 0);
      }
      *result = kGoOn;
    };
    for (const auto& [prefix, vm] : vms_) {
      const auto set = vm.cast<ffi::Module>()->GetFunction("set_instrument", true);
      if (!set.has_value())
        throw EngineError(error_code::kInternal, "the compiled blocks cannot be profiled");
      (*set)(ffi::Function::FromPacked(record));
    }
  }
  return profile_->Take();
}

void Blocks::ReleaseMemory() {
  MemoryManager::GetOrCreateAllocator(kCpu, kAllocator)->Clear();
}

std::string Blocks::Variant(std::string function,
                            const std::vector<std::string>& matrices) const {
  for (const std::string& name : matrices) function += "_" + bundle_.Format(name);
  return function;
}

Blocks::Block Blocks::Bind(const Kind& kind, const std::string& function,
                           const std::vector<std::string>& weights) const {
  const auto found = vms_.at(kind.prefix).cast<ffi::Module>()->GetFunction(function, true);
  if (!found.has_value()) {
    throw EngineError(error_code::kInternal, "no compiled block " + function);
  }
  Block block{*found, {}, kind.threads};
  for (const std::string& name : weights) {
    for (const TensorView& part : bundle_.Parts(name)) block.weights.emplace_back(Borrow(part));
  }
  return block;
}

Tensor Blocks::Call(const Block& block, std::vector<ffi::AnyView> arguments) {
  arguments.insert(arguments.end(), block.weights.begin(), block.weights.end());
  const ThreadPool::Team team(block.threads);
  ffi::Any result;
  try {
    block.function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  } catch (const ffi::Error& error) {
    throw EngineError(error_code::kInternal,
                      std::string("a compiled block failed: ") + error.what());
  }
  return result.cast<Tensor>();
}

}  // namespace minicpmv
