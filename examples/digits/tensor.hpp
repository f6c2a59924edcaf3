// A row-major matrix of floats. Feature maps are channels-last: row = (sample, y, x), column = channel.
#ifndef DIGITS_TENSOR_HPP
#define DIGITS_TENSOR_HPP

#include <Eigen/Core>

namespace digits {

using Index = Eigen::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Keeps its memory when it gets smaller: a network sees batches of several sizes by turns.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Index rows, Index cols) { resize(rows, cols); }

  // Contents are undefined afterwards.
  void resize(Index rows, Index cols) {
    if (memory_.size() < rows * cols) memory_.resize(rows * cols);
    rows_ = rows;
    cols_ = cols;
  }
  [[nodiscard]] Index rows() const { return rows_; }
  [[nodiscard]] Index cols() const { return cols_; }
  [[nodiscard]] float* data() { return memory_.data(); }
  [[nodiscard]] const float* data() const { return memory_.data(); }
  [[nodiscard]] float* row(Index r) { return data() + r * cols_; }
  [[nodiscard]] const float* row(Index r) const { return data() + r * cols_; }
  [[nodiscard]] Eigen::Map<Matrix> matrix() { return {data(), rows_, cols_}; }
  [[nodiscard]] Eigen::Map<const Matrix> matrix() const { return {data(), rows_, cols_}; }

 private:
  Eigen::ArrayXf memory_;
  Index rows_ = 0;
  Index cols_ = 0;
};

}  // namespace digits

#endif
