// The source of every random draw: of a split, of weights, of the order of samples, of lighting.
#ifndef DIGITS_RANDOM_HPP
#define DIGITS_RANDOM_HPP

#include <random>

namespace digits {

using Random = std::mt19937_64;

}  // namespace digits

#endif
