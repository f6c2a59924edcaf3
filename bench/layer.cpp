#include "layer.hpp"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace popnorm_bench {

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::forward_training:
      return "forward_training";
    case Operation::forward_inference:
      return "forward_inference";
    case Operation::backward:
      return "backward";
  }
  return "unknown";
}

const char* name_of(popnorm_layout layout) { return layout == POPNORM_NCHW ? "NCHW" : "NHWC"; }

std::string Layer::dimensions() const {
  std::ostringstream text;
  text << n << 'x' << c << 'x' << h << 'x' << w;
  return text.str();
}

std::vector<Layer> read_layers(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path + ": cannot be read");
  std::vector<Layer> layers;
  std::string line;
  std::getline(file, line);  // the column names
  for (int number = 2; std::getline(file, line); ++number) {
    std::istringstream fields(line);
    Layer layer;
    if (!(fields >> layer.n >> layer.c >> layer.h >> layer.w >> layer.network >> layer.count)) {
      throw std::runtime_error(path + ":" + std::to_string(number) + ": expected n, c, h, w, network, count");
    }
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace popnorm_bench
