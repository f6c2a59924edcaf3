// What only a device shows: its streams run side by side and nobody waits for them, calls are captured into graphs, memory is the
// host's or the device's, and tensors are larger than a host would fill. Run without CUDA_LAUNCH_BLOCKING (scripts/gpu-check).
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <popnorm/popnorm.hpp>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tensor.hpp"

namespace popnorm_test {
namespace {

void must(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

popnorm_options on_cuda() {
  popnorm_options options = POPNORM_OPTIONS_INIT;
  options.backend = POPNORM_CUDA;
  return options;
}

// Not managed: what frameworks have.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) { must(cudaMalloc(&data_, bytes > 0 ? bytes : 1)); }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  [[nodiscard]] void* data() const { return data_; }
  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(data_);
  }
  [[nodiscard]] std::size_t size() const { return bytes_; }
  [[nodiscard]] std::vector<std::uint8_t> host() const {
    std::vector<std::uint8_t> bytes(bytes_);
    must(cudaMemcpy(bytes.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return bytes;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

template <class Args>
Args with_scratch(Args args, const DeviceMemory& workspace, const DeviceMemory& reserve) {
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  args.reserve = reserve.data();
  args.reserve_bytes = reserve.size();
  return args;
}

// That the legacy stream does not wait for.
class Stream {
 public:
  Stream() { must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  [[nodiscard]] cudaStream_t get() const { return stream_; }
  void wait() const { must(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// A training step of one layer, all of whose inputs are written in its stream just before: x and dy by kernels that are slow to. Every
// other time dy is written first, and nothing stands between forward and backward.
class Step {
 public:
  explicit Step(const popnorm_problem& problem)
      : problem_(problem),
        plan_(problem, on_cuda()),
        elements_(problem.n * problem.c * problem.s),
        x_(bytes()),
        dy_(bytes()),
        y_(bytes()),
        dx_(bytes()),
        scale_(channels()),
        dscale_(channels()),
        dshift_(channels()),
        running_(2 * channels()),
        workspace_(plan_.info().workspace_bytes),
        reserve_(plan_.info().reserve_bytes) {
    const std::vector<float> ones(static_cast<std::size_t>(2 * problem.c), 1);
    must(cudaMemcpy(running_.data(), ones.data(), running_.size(), cudaMemcpyHostToDevice));
    must(cudaMemcpy(scale_.data(), ones.data(), scale_.size(), cudaMemcpyHostToDevice));
    must(cudaDeviceSynchronize());
  }

  void run(cudaStream_t stream, std::uint32_t seed) {
    const auto fill_dy = [&] { fill(dy_.data(), problem_.storage, elements_, seed + 1, stream, true); };
    const bool dy_first = seed % 4 == 2;
    if (dy_first) fill_dy();
    fill(x_.data(), problem_.storage, elements_, seed, stream, true);
    popnorm_forward_args f = with_scratch(popnorm_forward_args POPNORM_FORWARD_ARGS_INIT, workspace_, reserve_);
    f.x = x_.data();
    f.y = y_.data();
    f.scale = scale_.data();
    f.update.running_mean = running_.data();
    f.update.running_variance = running_.as<float>() + problem_.c;
    plan_.forward(f, stream);
    if (!dy_first) fill_dy();
    popnorm_backward_args b = with_scratch(popnorm_backward_args POPNORM_BACKWARD_ARGS_INIT, workspace_, reserve_);
    b.x = x_.data();
    b.dy = dy_.data();
    b.dx = dx_.data();
    b.dscale = dscale_.data();
    b.dshift = dshift_.data();
    plan_.backward(b, stream);
  }

  // Every byte of every output, of the last run and (running statistics) of all.
  [[nodiscard]] std::vector<std::uint8_t> outputs() const {
    std::vector<std::uint8_t> all;
    for (const DeviceMemory* memory : {&y_, &dx_, &dscale_, &dshift_, &running_}) {
      const std::vector<std::uint8_t> bytes = memory->host();
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

 private:
  [[nodiscard]] std::size_t bytes() const {
    return static_cast<std::size_t>(elements_) * (problem_.storage == POPNORM_F32 ? 4 : 2);
  }
  [[nodiscard]] std::size_t channels() const { return static_cast<std::size_t>(problem_.c) * sizeof(float); }

  popnorm_problem problem_;
  popnorm::plan plan_;
  std::int64_t elements_;
  DeviceMemory x_, dy_, y_, dx_, scale_, dscale_, dshift_, running_, workspace_, reserve_;
};

popnorm_problem problem_of(popnorm_layout layout, popnorm_type storage, std::int64_t n, std::int64_t c,
                           std::int64_t s) {
  popnorm_problem problem = layout == POPNORM_NCHW ? popnorm::problem_nchw(n, c, s) : popnorm::problem_nhwc(n, c, s);
  problem.storage = storage;
  return problem;
}

// By the plain path, by a block or a cluster to a channel (measured), of whole packs, packs of 8 bytes and of one element.
std::vector<popnorm_problem> problems() {
  return {
      problem_of(POPNORM_NCHW, POPNORM_F32, 50, 64, 56 * 56),  problem_of(POPNORM_NCHW, POPNORM_F32, 50, 128, 28 * 28),
      problem_of(POPNORM_NCHW, POPNORM_F32, 50, 256, 14 * 14), problem_of(POPNORM_NCHW, POPNORM_BF16, 50, 256, 14 * 14),
      problem_of(POPNORM_NCHW, POPNORM_F32, 50, 512, 7 * 7),   problem_of(POPNORM_NCHW, POPNORM_BF16, 50, 512, 7 * 7),
      problem_of(POPNORM_NHWC, POPNORM_F32, 50, 64, 56 * 56),  problem_of(POPNORM_NHWC, POPNORM_BF16, 50, 512, 7 * 7),
      problem_of(POPNORM_NHWC, POPNORM_F16, 3000, 33, 1)};
}

constexpr int kRuns = 12;

class OnDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
      GTEST_SKIP() << "SKIP: this machine has no CUDA device";
  }
};
using DeviceStreams = OnDevice;
using DeviceGraphs = OnDevice;
using DeviceAddresses = OnDevice;
using DeviceErrors = OnDevice;

// Nothing waits between calls, so that each kernel may begin while the one before it, a caller's among them, ends.
TEST_F(DeviceStreams, CallsThatNobodyWaitsForHaveTheBitsOfCallsThatAreWaitedFor) {
  for (const popnorm_problem& problem : problems()) {
    SCOPED_TRACE(std::to_string(problem.c) + " channels");
    const Stream stream;
    Step waited(problem), hurried(problem);
    for (std::uint32_t run = 0; run < kRuns; ++run) {
      waited.run(stream.get(), 2 * run);
      stream.wait();
    }
    for (std::uint32_t run = 0; run < kRuns; ++run) hurried.run(stream.get(), 2 * run);
    stream.wait();
    EXPECT_EQ(waited.outputs(), hurried.outputs());
  }
}

// Each with a thread of the host and a plan of its own.
TEST_F(DeviceStreams, SideBySideKeepTheirBits) {
  const std::vector<popnorm_problem> of = problems();
  std::vector<std::unique_ptr<Step>> alone, together;
  for (const popnorm_problem& problem : of) {
    alone.push_back(std::make_unique<Step>(problem));
    together.push_back(std::make_unique<Step>(problem));
  }
  for (const std::unique_ptr<Step>& step : alone) {
    const Stream stream;
    for (std::uint32_t run = 0; run < kRuns; ++run) step->run(stream.get(), 2 * run);
    stream.wait();
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<Step>& step : together)
    threads.emplace_back([&step] {
      const Stream stream;
      for (std::uint32_t run = 0; run < kRuns; ++run) step->run(stream.get(), 2 * run);
      stream.wait();
    });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < of.size(); ++i) EXPECT_EQ(alone[i]->outputs(), together[i]->outputs()) << i;
}

// Capture fails where a call allocates, waits, or uses another stream.
TEST_F(DeviceGraphs, HaveTheBitsOfTheCallsThatWereCaptured) {
  for (const popnorm_problem& problem : problems()) {
    SCOPED_TRACE(std::to_string(problem.c) + " channels");
    const Stream stream;
    Step called(problem), captured(problem);
    for (int run = 0; run < kRuns; ++run) called.run(stream.get(), 6);
    must(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal));
    captured.run(stream.get(), 6);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
    cudaGraphExec_t executable = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
    for (int run = 0; run < kRuns; ++run) must(cudaGraphLaunch(executable, stream.get()));
    stream.wait();
    EXPECT_EQ(called.outputs(), captured.outputs());
    must(cudaGraphExecDestroy(executable));
    must(cudaGraphDestroy(graph));
  }
}

// A forward whose arguments are all the device's.
class Call {
 public:
  Call() {
    args.x = x.data();
    args.y = y.data();
  }
  popnorm_status run() const { return popnorm_forward(plan_.get(), &args, nullptr); }
  void expect_host(const char* name) const {
    must(cudaMemset(y.data(), 0x5a, y.size()));
    EXPECT_EQ(run(), POPNORM_INVALID);
    const std::string message = popnorm_last_error();
    EXPECT_NE(message.find(std::string("forward: ") + name + " is at host address"), std::string::npos) << message;
    must(cudaDeviceSynchronize());
    EXPECT_EQ(y.host(), std::vector<std::uint8_t>(y.size(), 0x5a));
  }

 private:
  popnorm::plan plan_{problem_of(POPNORM_NCHW, POPNORM_F32, 2, 3, 4), on_cuda()};

 public:
  DeviceMemory x{96}, y{96}, workspace{plan_.info().workspace_bytes}, reserve{plan_.info().reserve_bytes};
  popnorm_forward_args args = with_scratch(popnorm_forward_args POPNORM_FORWARD_ARGS_INIT, workspace, reserve);
};

TEST_F(DeviceAddresses, OfTheHostAreRefusedByName) {
  alignas(64) static std::array<std::uint8_t, std::size_t{1} << 16> host;
  Call call;
  call.args.x = host.data();
  call.expect_host("x");
  call.args.x = call.x.data();
  call.args.scale = host.data();
  call.expect_host("scale");
  call.args.scale = nullptr;
  call.args.workspace = host.data();
  call.args.workspace_bytes = host.size();
  call.expect_host("workspace");
  call.args.workspace = call.workspace.data();
  call.args.workspace_bytes = call.workspace.size();
  call.args.reserve = host.data();
  call.args.reserve_bytes = host.size();
  call.expect_host("reserve");
}

TEST_F(DeviceAddresses, OfTheHostThatTheDeviceReachesAreServed) {
  void* pinned = nullptr;
  must(cudaMallocHost(&pinned, 96));
  auto* const values = static_cast<float*>(pinned);
  for (int i = 0; i < 24; ++i) values[i] = static_cast<float>(i);
  Call call;
  call.args.x = pinned;
  EXPECT_EQ(call.run(), POPNORM_SUCCESS) << popnorm_last_error();
  must(cudaDeviceSynchronize());
  const std::vector<std::uint8_t> from_pinned = call.y.host();
  must(cudaMemcpy(call.x.data(), pinned, 96, cudaMemcpyHostToDevice));
  call.args.x = call.x.data();
  EXPECT_EQ(call.run(), POPNORM_SUCCESS) << popnorm_last_error();
  must(cudaDeviceSynchronize());
  EXPECT_EQ(call.y.host(), from_pinned);
  must(cudaFreeHost(pinned));
}

// In a process of its own, whose context it ends.
TEST_F(DeviceErrors, OfAKernelOfTheCallersAreReported) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto call_after_it = [] {
    const Call call;
    fail_on_device();
    const popnorm_status status = call.run();
    std::fprintf(stderr, "%s: %s\n", popnorm_status_string(status), popnorm_last_error());
    std::_Exit(0);
  };
  EXPECT_EXIT(call_after_it(), ::testing::ExitedWithCode(0), "POPNORM_INTERNAL: forward: .+");
}

// More elements than 32 bits count, or in the last case as many as kernels count in 32 bits; all of them there. The values are multiples of
// 1/16 below 8, so that their sums are exact in f64, and in f32 those of the few that are added there.
class DeviceHuge : public OnDevice, public ::testing::WithParamInterface<popnorm_problem> {};

TEST_P(DeviceHuge, TensorsAreNormalizedWhole) {
  const popnorm_problem& problem = GetParam();
  const std::int64_t elements = problem.n * problem.c * problem.s;
  ASSERT_GT(elements, (std::int64_t{1} << 31) - (1 << 20));
  const auto bytes = static_cast<std::size_t>(elements) * 2;
  std::size_t available = 0, all = 0;
  must(cudaMemGetInfo(&available, &all));
  if (available < 2 * bytes + (std::size_t{1} << 30)) GTEST_SKIP() << "SKIP: the device has no 18 GB to spare";
  const popnorm::plan plan(problem, on_cuda());
  const auto channels = static_cast<std::size_t>(problem.c);
  const DeviceMemory x(bytes), y(bytes), workspace(plan.info().workspace_bytes), reserve(plan.info().reserve_bytes),
      mean(channels * 4), invstd(channels * 4), dscale(channels * 4), dshift(channels * 4), sums(channels * 4 * 8),
      wrong(8);
  const auto floats = [&](const DeviceMemory& memory) {
    std::vector<float> values(channels);
    must(cudaMemcpy(values.data(), memory.data(), memory.size(), cudaMemcpyDeviceToHost));
    return values;
  };
  const Shape shape{problem.n, problem.c, problem.s, problem.layout == POPNORM_NHWC};
  const auto wrong_elements = [&] {
    std::uint64_t count = 0;
    must(cudaMemcpy(&count, wrong.data(), 8, cudaMemcpyDeviceToHost));
    return count;
  };
  const auto sums_of = [&] {
    std::vector<double> values(4 * channels);
    must(cudaMemset(sums.data(), 0, sums.size()));
    // Of x, x squared, dy and dy x, channel after channel.
    sum(x.as<std::uint16_t>(), y.as<std::uint16_t>(), shape, sums.as<double>());
    must(cudaMemcpy(values.data(), sums.data(), sums.size(), cudaMemcpyDeviceToHost));
    return values;
  };
  fill(x.data(), problem.storage, elements, 1, nullptr, false);
  popnorm_forward_args f = with_scratch(popnorm_forward_args POPNORM_FORWARD_ARGS_INIT, workspace, reserve);
  f.x = x.data();
  f.y = y.data();
  f.saved_mean = mean.data();
  f.saved_invstd = invstd.data();
  plan.forward(f);
  must(cudaMemset(wrong.data(), 0, 8));
  count_wrong_y(x.as<std::uint16_t>(), y.as<std::uint16_t>(), shape, mean.as<float>(), invstd.as<float>(),
                wrong.as<unsigned long long>());
  EXPECT_EQ(wrong_elements(), 0U);

  // dy takes y's place, and dx dy's.
  fill(y.data(), problem.storage, elements, 2, nullptr, false);
  const std::vector<double> of = sums_of();
  popnorm_backward_args b = with_scratch(popnorm_backward_args POPNORM_BACKWARD_ARGS_INIT, workspace, reserve);
  b.x = x.data();
  b.dy = y.data();
  b.dx = y.data();
  b.dscale = dscale.data();
  b.dshift = dshift.data();
  plan.backward(b);
  must(cudaDeviceSynchronize());
  const std::vector<float> got_mean = floats(mean), got_invstd = floats(invstd), got_dscale = floats(dscale),
                           got_dshift = floats(dshift);
  const double count = static_cast<double>(problem.n) * static_cast<double>(problem.s);
  constexpr double u = 0x1p-24;
  // The bounds of docs/numerics.md, with |dy| <= 8 and a mean |xhat| of at most 1; one rounding is u of the value.
  for (std::size_t c = 0; c < channels; ++c) {
    const double mu = of[4 * c] / count, variance = of[4 * c + 1] / count - mu * mu;
    const double expected_invstd = 1 / std::sqrt(variance + problem.epsilon);
    const double dshift_of = of[4 * c + 2], dscale_of = (of[4 * c + 3] - mu * dshift_of) * expected_invstd;
    EXPECT_NEAR(static_cast<double>(got_mean[c]), mu, 16 * u * std::sqrt(variance) + u * std::fabs(mu)) << c;
    EXPECT_NEAR(static_cast<double>(got_invstd[c]), expected_invstd, 9 * u * expected_invstd) << c;
    EXPECT_EQ(got_dshift[c], static_cast<float>(dshift_of)) << c;
    EXPECT_NEAR(static_cast<double>(got_dscale[c]), dscale_of, 8 * u * 16 * count + u * std::fabs(dscale_of)) << c;
  }
  must(cudaMemset(wrong.data(), 0, 8));
  count_wrong_dx(x.as<std::uint16_t>(), y.as<std::uint16_t>(), shape, 2, mean.as<float>(), invstd.as<float>(),
                 dscale.as<float>(), dshift.as<float>(), wrong.as<unsigned long long>());
  EXPECT_EQ(wrong_elements(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Layouts, DeviceHuge,
                         ::testing::Values(problem_of(POPNORM_NCHW, POPNORM_BF16, 2, 3, 715827890),
                                           problem_of(POPNORM_NCHW, POPNORM_BF16, 70000, 64, 961),
                                           problem_of(POPNORM_NHWC, POPNORM_BF16, 2, 3, 715827890),
                                           problem_of(POPNORM_NHWC, POPNORM_BF16, 17, 256, (1 << 20) + 1),
                                           problem_of(POPNORM_NCHW, POPNORM_BF16, 1, 1,
                                                      (std::int64_t{1} << 31) - (1 << 19) - 1)));

}  // namespace
}  // namespace popnorm_test
