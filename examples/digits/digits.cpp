#include "digits.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>

namespace digits {
namespace {

constexpr int kDarkest = 16;

std::string unzip(const std::filesystem::path& file) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> in(gzopen(file.c_str(), "rb"), gzclose);
  if (!in) throw std::runtime_error(file.string() + ": cannot be opened");
  std::string text;
  std::array<char, 1 << 16> chunk;
  for (int got = 1; got > 0;) {
    got = gzread(in.get(), chunk.data(), chunk.size());
    if (got > 0) text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  int status = Z_OK;
  const char* message = gzerror(in.get(), &status);
  if (status != Z_OK && status != Z_STREAM_END) throw std::runtime_error(message);  // it begins with the file
  return text;
}

// Reads "a,b,...,z" into `fields`; throws a message without the place.
void parse(std::string_view line, std::span<int> fields) {
  const char* at = line.data();
  const char* const end = at + line.size();
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (i > 0) {
      if (at == end || *at != ',') {
        throw std::runtime_error("column " + std::to_string(i + 1) + " of " + std::to_string(fields.size()) +
                                 " is missing");
      }
      ++at;
    }
    const auto [next, failure] = std::from_chars(at, end, fields[i]);
    if (failure != std::errc()) throw std::runtime_error("column " + std::to_string(i + 1) + " is not an integer");
    at = next;
  }
  if (at != end) throw std::runtime_error("more than " + std::to_string(fields.size()) + " columns");
}

void require_range(int value, int largest, const char* what) {
  if (value < 0 || value > largest) {
    throw std::runtime_error(std::string(what) + " " + std::to_string(value) + " is outside 0.." +
                             std::to_string(largest));
  }
}

}  // namespace

Digits load(const std::filesystem::path& file) {
  const std::string text = unzip(file);
  std::vector<std::array<int, kPixels + 1>> samples;
  std::size_t number = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t length = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, length);
    rest.remove_prefix(std::min(length + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number;
    try {
      parse(line, samples.emplace_back());
      for (const int pixel : std::span(samples.back()).first<kPixels>()) require_range(pixel, kDarkest, "pixel");
      require_range(samples.back().back(), kClasses - 1, "label");
    } catch (const std::runtime_error& wrong) {
      throw std::runtime_error(file.string() + ":" + std::to_string(number) + ": " + wrong.what());
    }
  }
  if (samples.empty()) throw std::runtime_error(file.string() + ": holds no samples");

  Digits all;
  all.images.resize(static_cast<Index>(samples.size()) * kPixels, 1);
  float* pixel = all.images.data();
  for (const auto& sample : samples) {
    for (const int value : std::span(sample).first<kPixels>()) *pixel++ = static_cast<float>(value) / kDarkest;
    all.labels.push_back(sample.back());
  }
  return all;
}

void select(const Digits& from, std::span<const Index> indices, Digits& out) {
  out.images.resize(static_cast<Index>(indices.size()) * kPixels, 1);
  out.labels.resize(indices.size());
  for (std::size_t i = 0; i < indices.size(); ++i) {
    std::copy_n(from.images.row(indices[i] * kPixels), kPixels, out.images.row(static_cast<Index>(i) * kPixels));
    out.labels[i] = from.labels[static_cast<std::size_t>(indices[i])];
  }
}

void light(Digits& samples, Index first, Index count, float contrast, float brightness) {
  auto pixels = samples.images.matrix().middleRows(first * kPixels, count * kPixels).array();
  pixels = brightness + contrast * (pixels - kGrey);
}

Split split(const Digits& all, Index train, std::uint64_t seed) {
  if (train < 1 || train >= all.size()) {
    throw std::runtime_error(std::to_string(all.size()) + " samples cannot be split into " + std::to_string(train) +
                             " for training and at least one for validation");
  }
  std::vector<Index> order(all.labels.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::mt19937_64 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  const auto chosen = static_cast<std::size_t>(train);
  Split parts;
  select(all, std::span(order).first(chosen), parts.train);
  select(all, std::span(order).subspan(chosen), parts.validation);
  return parts;
}

}  // namespace digits
