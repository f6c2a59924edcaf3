#include "onednn.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>
#include <unordered_map>

#if POPNORM_BENCH_ONEDNN_MAJOR >= 3
#include "onednn_v3.hpp"
#else
#include "onednn_v2.hpp"
#endif

namespace popnorm_bench {
namespace {

using Arguments = std::unordered_map<int, dnnl::memory>;

struct Runtime {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};

// Throws dnnl::error if the engine does not start.
Runtime& runtime() {
#ifdef POPNORM_BENCH_OPENCL_DRIVER
  // A SYCL build of oneDNN finds the processor through an OpenCL driver that lies beside it and is registered nowhere.
  setenv("OCL_ICD_FILENAMES", POPNORM_BENCH_OPENCL_DRIVER, 0);
#endif
  static Runtime instance;
  return instance;
}

bool is_openmp() { return dnnl::version()->cpu_runtime == DNNL_RUNTIME_OMP; }

std::string threading() {
  switch (dnnl::version()->cpu_runtime) {
    case DNNL_RUNTIME_OMP:
      return "OpenMP";
    case DNNL_RUNTIME_TBB:
      return "TBB";
    case DNNL_RUNTIME_SEQ:
      return "sequential";
#if POPNORM_BENCH_ONEDNN_MAJOR >= 3
    case DNNL_RUNTIME_SYCL:
      return "TBB under SYCL";
#endif
    default:
      return "unknown threading";
  }
}

// oneDNN has no call for it, and this program is not linked against the OpenMP library that oneDNN brings.
void set_openmp_threads(int threads) {
  using Function = void (*)(int);
  if (auto* set = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(threads);
}

dnnl::memory::format_tag tag_of(popnorm_layout layout, PeerLayout wanted) {
  using dnnl::memory;
  if (layout == POPNORM_NHWC) return memory::format_tag::nhwc;
  if (wanted == PeerLayout::plain) return memory::format_tag::nchw;
  return __builtin_cpu_supports("avx512f") ? memory::format_tag::nChw16c : memory::format_tag::nChw8c;
}

void copy(dnnl::memory from, dnnl::memory to) {
  dnnl::reorder(from, to).execute(runtime().stream, from, to);
  runtime().stream.wait();
}

}  // namespace

std::optional<PeerFacts> onednn_facts(std::string& why) {
  try {
    runtime();
  } catch (const dnnl::error& error) {
    why = std::string("oneDNN: ") + error.what();
    return std::nullopt;
  }
  const dnnl_version_t& v = *dnnl::version();
  return PeerFacts{std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch), threading(),
                   is_openmp()};
}

Peer make_onednn(const Task& task, ChannelArrays& arrays, int threads, PeerLayout layout) {
  using dnnl::normalization_flags;
  using dnnl::prop_kind;
  set_openmp_threads(threads);
  const Layer& layer = task.layer;
  const dnnl::engine& engine = runtime().engine;
  const auto described = [&](PeerLayout in) {
    return dnnl::memory::desc({layer.n, layer.c, layer.h, layer.w}, dnnl::memory::data_type::f32,
                              tag_of(task.layout, in));
  };
  const dnnl::memory::desc tensor = described(layout), given = described(PeerLayout::plain);
  const bool copies = tensor != given;
  const dnnl::memory::desc channels(dnnl::memory::dims{layer.c}, dnnl::memory::data_type::f32,
                                    dnnl::memory::format_tag::x);
  const auto flags = normalization_flags::use_scale | normalization_flags::use_shift;
  const auto large = [&](float* values) {
    const dnnl::memory there(given, engine, values);
    if (!copies) return there;
    const dnnl::memory own(tensor, engine);
    copy(there, own);
    return own;
  };
  const auto small = [&](std::vector<float>& values) { return dnnl::memory(channels, engine, values.data()); };
  const auto execute = [](const dnnl::primitive& primitive, const Arguments& arguments) {
    primitive.execute(runtime().stream, arguments);
    runtime().stream.wait();
  };

  const auto training = describe_forward(engine, prop_kind::forward_training, tensor, kEpsilon, flags);
  const auto forward_arguments = [&](const Tensors& t) {
    return Arguments{{DNNL_ARG_SRC, large(t.x)},
                     {DNNL_ARG_DST, large(t.out)},
                     {DNNL_ARG_SCALE, small(arrays.scale)},
                     {DNNL_ARG_SHIFT, small(arrays.shift)},
                     {DNNL_ARG_MEAN, small(arrays.mean)},
                     {DNNL_ARG_VARIANCE, small(arrays.variance)}};
  };
  const auto backward_arguments = [&](const Tensors& t) {
    Arguments all{{DNNL_ARG_SRC, large(t.x)},
                  {DNNL_ARG_DIFF_DST, large(t.dy)},
                  {DNNL_ARG_DIFF_SRC, large(t.out)},
                  {DNNL_ARG_SCALE, small(arrays.scale)},
                  {DNNL_ARG_MEAN, small(arrays.mean)},
                  {DNNL_ARG_VARIANCE, small(arrays.variance)},
                  {DNNL_ARG_DIFF_SCALE, small(arrays.dscale)},
                  {DNNL_ARG_DIFF_SHIFT, small(arrays.dshift)}};
    // Version 2 insists on it, early releases of version 3 refuse it.
    if constexpr (POPNORM_BENCH_ONEDNN_MAJOR < 3) all.emplace(DNNL_ARG_SHIFT, small(arrays.shift));
    return all;
  };

  dnnl::primitive primitive;
  std::string implementation;
  const auto choose = [&](const auto& description, auto made) {
    primitive = std::move(made);
    implementation = description.impl_info_str();
  };
  switch (task.operation) {
    case Operation::forward_training:
      choose(training, dnnl::batch_normalization_forward(training));
      break;
    case Operation::forward_inference: {
      const auto inference = describe_forward(engine, prop_kind::forward_inference, tensor, kEpsilon,
                                              flags | normalization_flags::use_global_stats);
      choose(inference, dnnl::batch_normalization_forward(inference));
      break;
    }
    case Operation::backward: {
      execute(dnnl::batch_normalization_forward(training), forward_arguments(task.sets[0]));
      const auto backward = describe_backward(engine, tensor, kEpsilon, flags, training);
      choose(backward, dnnl::batch_normalization_backward(backward));
      break;
    }
  }
  auto arguments = std::make_shared<std::vector<Arguments>>();
  for (const Tensors& t : task.sets) {
    arguments->push_back(task.operation == Operation::backward ? backward_arguments(t) : forward_arguments(t));
  }
  Peer peer{[primitive, arguments, execute](std::size_t set) { execute(primitive, (*arguments)[set]); },
            implementation};
  if (copies) {
    const int out = task.operation == Operation::backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST;
    peer.deliver = [made = arguments->front().at(out), to = dnnl::memory(given, engine, task.sets[0].out)] {
      copy(made, to);
    };
  }
  return peer;
}

}  // namespace popnorm_bench
