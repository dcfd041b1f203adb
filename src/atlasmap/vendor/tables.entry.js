export { default } from "datatables.net-dt";
