export default (given) => mount(Board, given);
